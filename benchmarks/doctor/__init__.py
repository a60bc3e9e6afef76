"""Whether the doctor names what is wrong: causes planted on purpose, and healthy runs that must raise no alarm."""
