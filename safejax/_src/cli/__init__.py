"""The command line: `safejax inspect`, `diff`, `convert`, `verify` and `plan`."""
