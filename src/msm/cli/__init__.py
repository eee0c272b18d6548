"""The command line: every command is a few calls of the node's API and a way to show the answer."""
