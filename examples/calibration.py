"""Calibrate int8 on your own images and texts (needs the export extra).

python examples/calibration.py fg-clip2-pocket PHOTOS captions.txt bundle
"""

import sys
from pathlib import Path

from fgclip_rt import export
from fgclip_rt.folders import search_folder


def main(model: str, folder: str, captions: str, output: str) -> None:
    texts = Path(captions).read_text(encoding="utf-8").splitlines()
    inputs = export.CalibrationInputs(search_folder(folder).files, texts)
    source = export.checkpoint_source(model)
    bundle = export.export(source, Path(output), ("fp32", "int8"), inputs=inputs)
    for row in bundle.manifest.parity.measured["int8"]:
        print(f"{row.graph}, {row.case}: smallest cosine {row.min_cosine:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
