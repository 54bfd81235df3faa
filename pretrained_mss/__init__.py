"""The checkpoint that ships with the package, as package data: weights and configurations; the code is the package's."""
