"""What every script does around its work: arguments and `--config`, run folders, whole files."""
