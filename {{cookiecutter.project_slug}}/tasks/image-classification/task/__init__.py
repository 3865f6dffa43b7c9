"""What any project of this task has: augmentation, classes, tables, the report."""
