"""Tables, figures and the page, built from records alone."""
