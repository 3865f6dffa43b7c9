"""What is shown of a run: figures, grids of images, the page of test.py and its numbers."""
