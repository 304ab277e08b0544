"""Pictures of what was observed: sheets of pixels with Pillow, and curves as SVG for pages."""
