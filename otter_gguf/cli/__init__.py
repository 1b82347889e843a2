"""The command line: ``main.py`` finds the verb, one module a verb does the work."""
