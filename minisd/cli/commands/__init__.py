"""The commands, one file each: HELP, configure(parser), and run(args) -> exit status."""
