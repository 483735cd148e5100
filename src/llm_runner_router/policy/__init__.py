"""What holds around every answer: who may ask, how long, what is measured and recorded."""
