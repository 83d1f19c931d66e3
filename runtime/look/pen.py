"""A surface to draw on in layout units, so that one layout serves every resolution."""

from __future__ import annotations

from PIL import Image, ImageDraw

from prunevid.runtime.look.style import BACKGROUND, TEXT, Colour, drawable, font


class Pen:
    """Draws onto `image`. All positions and sizes are in layout units, `scale` pixels each."""

    def __init__(self, image: Image.Image, scale: int) -> None:
        self.image, self.scale = image, scale
        self._draw = ImageDraw.Draw(image)

    @classmethod
    def on_empty(cls, width: float, height: float, scale: int) -> Pen:
        """A pen on a new picture of the background's colour."""
        return cls(Image.new("RGB", (round(width * scale), round(height * scale)), BACKGROUND), scale)

    def text(
        self, x: float, baseline: float, text: str, size: int, colour: Colour = TEXT, *, from_right: bool = False
    ) -> float:
        """One line of text that begins, or ends, at `x`; returns its other end."""
        face, anchor = font(size * self.scale), "rs" if from_right else "ls"
        letters = drawable(text)
        self._draw.text((x * self.scale, baseline * self.scale), letters, colour, face, anchor)
        width = face.getlength(letters) / self.scale
        return x - width if from_right else x + width

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, radius: float = 0) -> None:
        """A filled rectangle."""
        corners = (x * self.scale, y * self.scale, (x + width) * self.scale - 1, (y + height) * self.scale - 1)
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            self._draw.rounded_rectangle(corners, radius * self.scale, colour)

    def paste(self, picture: Image.Image, x: float, y: float) -> None:
        """A picture, pixel by pixel."""
        self.image.paste(picture, (round(x * self.scale), round(y * self.scale)))
