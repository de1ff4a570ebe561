"""The commands: flags mapped onto one function call each."""
