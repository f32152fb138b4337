"""What people look at: sheets of pictures, curves, pages."""
