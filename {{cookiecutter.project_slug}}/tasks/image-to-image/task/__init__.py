"""What any project of this task has: pairs, degradations, tiles, outputs, the report."""
