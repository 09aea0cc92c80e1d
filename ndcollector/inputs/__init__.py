"""The collector's inputs, one file each; file name = config key = metric label = logger name."""
