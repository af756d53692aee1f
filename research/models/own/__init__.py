"""Networks of the user's own, as models of the loop."""
