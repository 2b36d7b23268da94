"""What `headway fleet doctor` looks at; `examine` is the walk, and each other module one part of the ground.

Rules that all keep: nothing is changed, and each looks as well beside a running service as without one, and with
the database away. What a part finds comes with the exact thing to do. What other modules know is asked of them.
"""
