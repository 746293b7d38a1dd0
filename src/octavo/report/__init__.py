"""Tables, figures, PDF and HTML from what the evidence says."""
