"""What this machine has, and what of patchtrain will be fast, slow or broken on it, and why.

Each module looks at one area and yields a ``Finding`` for everything it sees. What can be tried is
tried (a backend against its formula, a lock, a compiler, products of matrices): what a package
says of itself is no proof that it works here.
"""
