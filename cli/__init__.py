"""The command line of tidings: one click command per module, loaded when it is called; see ``tidings --help``."""
