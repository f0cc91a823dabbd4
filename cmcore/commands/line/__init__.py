"""The commands of `cmlab` with their options, a file for each group."""
