"""Machinery that stays as it is when the task changes; the files beside this folder are yours."""
