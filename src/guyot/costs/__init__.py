"""What a network costs: MACs, parameters and milliseconds as polynomials of its widths."""
