"""The command line: `mss-lm`, one file a sub-command. Arguments and wiring only."""
