"""Are the results reproducible, and does every number lead back to what made it?"""
