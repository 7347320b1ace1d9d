"""What options that save memory or time, and converted files, cost in quality: pocket models, judged by `zoo/judge.py`.

Each test makes the same clips twice, with a setting and without, through the whole of `generate`. Two figures guard:
the judge's score, and how far the clips themselves lie apart, which shows far smaller faults.
"""
