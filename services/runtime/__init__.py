"""The launcher: the whole platform as processes of this machine, without containers."""
