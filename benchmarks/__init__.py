"""How fast a project of the template trains, against others and against the limit: `make bench`."""
