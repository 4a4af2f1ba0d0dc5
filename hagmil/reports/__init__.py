"""Building blocks of the HTML reports: one theme, one page frame and one set of SVG elements."""
