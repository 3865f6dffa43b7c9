"""What any project of this task has: pairs, degradations, tiles, the report."""
