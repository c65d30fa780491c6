"""One file for each operator, or for a few that go together: what is timed, against what, and its limit and goal."""
