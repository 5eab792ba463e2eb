"""What a run looks like: one HTML page, contact sheets of replay, curves, a picture for a README.

Everything printed comes through `plain` and through templates that escape; no page asks for anything outside itself.
"""

from replaygen.report.attribution import write_attribution
from replaygen.report.curves import curves_svg
from replaygen.report.examples import Example, examples
from replaygen.report.gallery import Gallery, predictions, step_images
from replaygen.report.overview import overview_png
from replaygen.report.page import write_report
from replaygen.report.sheets import Sheet, sheet
from replaygen.report.text import plain

__all__ = [
    "Example",
    "Gallery",
    "Sheet",
    "curves_svg",
    "examples",
    "overview_png",
    "plain",
    "predictions",
    "sheet",
    "step_images",
    "write_attribution",
    "write_report",
]
