"""Heat maps of dense features: a picture of each text's cosines with the patches of an image.

- ``scales``: which colour a cosine has.
- ``layout``: how large everything is, and where it stands.
- ``fonts``: font files that have the characters of a text.
- ``packages``: the package that brings such a font.
- ``writing``: lines of text in several fonts.
- ``drawing``: the picture.
"""

from .drawing import Picture, draw
from .fonts import check_font
from .layout import Layout, plan
from .packages import font_advice
from .scales import Scale, choose_scales

__all__ = ["Layout", "Picture", "Scale", "check_font", "choose_scales", "draw", "font_advice", "plan"]
