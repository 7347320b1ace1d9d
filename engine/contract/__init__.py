"""What both processes and the docs import: options, commands, jobs, events, errors. Standard library only.

Nothing is imported here, so that asking for one module never loads another.
"""
