"""The command line. Its entry is `__main__`; each other module holds a group of commands, or what they share."""
