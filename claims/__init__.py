"""What the documents behind this project say, done again: `python -m claims` measures every claim
and writes docs/claims.md. Nothing is typed in but the claims themselves.

row.py             one line of the table
digits.py          CIFAR-shaped data, from disk or made from scikit-learn's digits
road.py, matrices.py, economics.py, deeper.py, enthusiasts.py    one document each
page.py            the page
"""
