"""The process manager: makes what runs equal to what is released, itself included."""
