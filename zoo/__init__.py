"""The zoo: tiny models trained here, from generators to weights. Not imported by the product."""
