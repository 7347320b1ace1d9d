"""One file a verb. The only code that sees a whole job: it picks the values out and hands them to those who use them.

Each file offers `run(job, say, control)`, and `home(job)` where the job keeps a record: the folder in which its job
folder is made.
"""
