"""The sections made of pictures: masks on crops, feature maps, nearest neighbours, the data card."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jepa.data import Manifest
from jepa.errors import JepaError
from jepa.report import material, pictures
from jepa.report.markup import Html, count, html, image, join, number, percent
from jepa.report.page import Section, missing
from jepa.report.read import Run

MASKED = 6  # crops shown with their masks
MAPPED = 9  # images shown with feature maps
QUERIES = 6
NEAREST = 6
CONTACT = 48
DRAWN_RUNS = 4  # more runs than that get no pictures of their own


def sections(runs: Sequence[Run], device: str) -> list[Section]:
    """The four picture sections."""
    return [
        Section(
            "masks", "What is hidden, what must be predicted",
            "The first training crops of the run with exactly the masks they got. The encoder sees only the patches "
            "that are left; from them it has to predict what the target encoder says about each coloured block.",
            _each(runs, masks), "Masks",
        ),
        Section(
            "features", "What the encoder sees",
            "Each patch is coloured by the three directions in which patches differ most: patches of one colour look "
            "alike to the encoder. An encoder that understands gives things and background different colours.",
            _each(runs, lambda run: features(run, device)), "Features",
        ),
        Section(
            "neighbours", "What the encoder finds similar",
            "On the left an image it was not trained on, beside it the training images whose features point the same "
            "way. Queries are drawn by seed, not chosen.",
            _each(runs, lambda run: neighbours(run, device)), "Neighbours",
        ),
        Section("data", "Data", "What it was trained and tested on.", _data(runs)),
    ]  # fmt: skip


def _each(runs: Sequence[Run], draw: Callable[[Run], Html]) -> Html:
    """One block for each run; what cannot be drawn says why."""
    parts = []
    for run in runs[:DRAWN_RUNS]:
        try:
            body = draw(run)
        except (JepaError, OSError) as error:
            body = missing(f"Not drawn: {error}.")
        opened = Html(" open") if run is runs[0] else Html("")
        parts.append(
            html("<details{o}><summary>{n}</summary>{b}</details>", o=opened, n=run.name, b=body)
            if len(runs) > 1 else body
        )  # fmt: skip
    if len(runs) > DRAWN_RUNS:
        parts.append(missing(f"Pictures are drawn for the first {DRAWN_RUNS} runs.", "jepa report RUN"))
    return join(parts)


# --- masks --------------------------------------------------------------------------------------------------------


def masks(run: Run) -> Html:
    """Crop, context and targets of the first samples."""
    found = material.crops(run, MASKED)
    if found is None:
        return missing("This method uses no masks.")
    blocks, size = len(found.masks.target), found.grid[0] * found.grid[1]
    kept = found.masks.context[0].shape[1]
    cards = []
    for i in range(len(found.images)):
        tiles = mask_tiles(found, i)
        names = (
            f"training crop number {found.g[i]}",
            f"the same crop with all but {kept} of {size} patches hidden",
            f"the same crop with {blocks} target blocks outlined",
        )
        cells = join(_image(t, alt) for t, alt in zip(tiles, names, strict=True))
        heads = _heads("training crop", "what the encoder sees", "what it must predict") if i < 2 else Html("")
        cards.append(html('<div class="strip three">{h}{c}</div>', h=heads, c=cells))
    colours = join(
        html(
            '<li><i style="background:rgb({c})"></i>target block {n}</li>', n=i + 1,
            c=",".join(map(str, pictures.TARGET_COLOURS[i % len(pictures.TARGET_COLOURS)])),
        )
        for i in range(blocks)
    )  # fmt: skip
    sizes = ", ".join(str(t.shape[1]) for t in found.masks.target)
    return html(
        '<ul class="swatches"><li><i style="background:rgb({g})"></i>hidden from the context encoder</li>{l}</ul>'
        '<figure><div class="cards two">{c}</div><figcaption>Samples g = {a} to {b} of step 0, seed {s}: {k} of {n} '
        "patches ({p}) are context, the {t} target blocks hold {z} patches. Blocks may overlap each other, never the "
        "context.</figcaption></figure>",
        g=",".join(map(str, pictures.HIDDEN[1])), l=colours, c=join(cards), a=found.g[0], b=found.g[-1],
        s=run.config.seed, k=kept, n=size, p=percent(kept / size, 0), t=blocks, z=sizes,
    )  # fmt: skip


def mask_tiles(found: material.Crops, i: int) -> list[pictures.Picture]:
    """Crop, context and target tiles of sample i."""
    crop = found.images[i]
    return [
        pictures.plain(crop),
        pictures.context_tile(crop, found.masks.context[0][i], found.grid),
        pictures.target_tile(crop, [t[i] for t in found.masks.target], found.grid),
    ]


def _image(picture: pictures.Picture, alt: str) -> Html:
    return image(picture, alt, "pixel" if max(picture.size) < pictures.SIDE // 2 else "")


def _heads(*names: str) -> Html:
    return join(html('<span class="head">{n}</span>', n=n) for n in names)


# --- feature maps -------------------------------------------------------------------------------------------------


def features(run: Run, device: str) -> Html:
    """Images beside feature maps of the trained and of a random encoder."""
    if not run.checkpoints:
        return _no_checkpoint(run)
    pair = material.encoders(run, device)
    found = material.features(run, material.manifest(run), pair, device)
    trained, share = pictures.feature_maps(found.trained, found.grid, MAPPED)
    untrained, share0 = pictures.feature_maps(found.untrained, found.grid, MAPPED)
    cards = []
    for i, (mine, other) in enumerate(zip(trained, untrained, strict=True)):
        cells = join([
            _image(pictures.plain(found.images[i]), f"{found.split} image"),
            _image(mine, f"feature map of the {pair[0].which} encoder after training"),
            _image(other, "feature map of the same encoder with random weights"),
        ])  # fmt: skip
        heads = _heads("image", f"{pair[0].which}, step {pair[0].step}", "random init") if i < 3 else Html("")
        cards.append(html('<div class="strip three">{h}{c}</div>', h=heads, c=cells))
    return html(
        '<figure><div class="cards">{c}</div><figcaption>First three principal components of patch features as red, '
        "green and blue, fitted to {n} {s} images at once, so that a colour means the same in every picture of a "
        "column. What a place in the image adds by itself is taken off first. The colours carry {a} of the variance "
        "that is left (random init: {b}).</figcaption></figure>",
        c=join(cards), n=len(found.images), s=found.split, a=percent(share, 0), b=percent(share0, 0),
    )  # fmt: skip


def _no_checkpoint(run: Run) -> Html:
    return missing("The run has no complete checkpoint yet.", f"jepa train {run.path} --resume")


# --- neighbours ---------------------------------------------------------------------------------------------------


def neighbours(run: Run, device: str) -> Html:
    """Queries with their nearest training images, right and wrong by class label."""
    if not run.checkpoints:
        return _no_checkpoint(run)
    data = material.manifest(run)
    encoder, _ = material.encoders(run, device)
    found = material.pools(run, data, encoder, device, QUERIES)
    near, cosines = pictures.nearest(found.queries, found.bank, NEAREST)
    shown = material.pictures(run, data, run.config.data.split, found.bank_index[near.flatten().numpy()])
    rows, right, judged = [], 0, 0
    for q in range(len(near)):
        label = int(found.query_labels[q])
        cells = [_cell(pictures.plain(found.query_images[q]), "query", f"query: {_name(data, label)}", "")]
        cells.append(Html("<span></span>"))
        for k, place in enumerate(near[q].tolist()):
            other = int(found.bank_labels[place])
            known = label >= 0 and other >= 0
            judged, right = judged + known, right + (known and other == label)
            css = ("yes" if other == label else "no") if known else "query"
            mark = {"yes": "✓ ", "no": "✗ "}.get(css, "")
            cells.append(_cell(pictures.plain(shown[q * near.shape[1] + k]), css, f"{mark}{_name(data, other)}",
                               f"cosine {float(cosines[q, k]):.2f}"))  # fmt: skip
        rows.append(html('<div class="hood">{c}</div>', c=join(cells)))
    verdict = f" Here {right} of {judged} neighbours have the query's class." if judged else ""
    return html(
        '<figure><div class="scroll">{r}</div><figcaption>Queries from the {s} split, neighbours among {n} training '
        "images by cosine of mean-pooled features of the {w} encoder (step {t}). Green and ✓: same class; red and ✗: "
        "another.{v}</figcaption></figure>",
        r=join(rows), s=found.split, n=number(len(found.bank)), w=encoder.which, t=encoder.step, v=verdict,
    )  # fmt: skip


def _cell(picture: pictures.Picture, css: str, text: str, more: str) -> Html:
    alt = f"{text}, {more}" if more else text
    return html('<figure class="{c}">{i}<figcaption>{t}</figcaption></figure>', c=css, i=_image(picture, alt), t=text)


def _name(data: Manifest, label: int) -> str:
    if label < 0:
        return "no label"
    return data.classes[label] if label < len(data.classes) else str(label)


# --- data card ----------------------------------------------------------------------------------------------------


def _data(runs: Sequence[Run]) -> Html:
    """One card for each data set that the runs read."""
    first = {run.config.data.path: run for run in reversed(runs)}
    parts = []
    for run in reversed(first.values()):
        try:
            parts.append(card(run))
        except (JepaError, OSError) as error:
            how = "jepa data build datasets/NAME.yaml --out " + (run.config.data.path or "DIR")
            parts.append(missing(f"The data set cannot be shown: {error}.", how))
    return join(parts)


def card(run: Run) -> Html:
    """Counts, licence, classes and a contact sheet."""
    data = material.manifest(run)
    rows = [("name", data.name), ("licence", data.licence), ("content hash", data.hash[:16])]
    for name, split in data.splits.items():
        originals = len(np.unique(split.originals))
        labelled = np.asarray(split.labels)
        classes = len(np.unique(labelled[labelled >= 0]))
        words = count(len(split), "image")
        words += f" from {count(originals, 'original')}" if originals != len(split) else ""
        words += f", {count(classes, 'class', 'classes')}" if classes else ", no labels"
        rows.append((f"split {name}", words))
    if data.image.get("smallest") and data.image.get("largest"):
        low, high = ("×".join(map(str, data.image[k])) for k in ("smallest", "largest"))
        rows.append(("size in pixels", low if low == high else f"{low} to {high}"))
    if data.classes:
        more = f" and {len(data.classes) - 20} more" if len(data.classes) > 20 else ""
        rows.append(("classes", ", ".join(data.classes[:20]) + more))
    rows += [("note", note) for note in data.notes]
    if data.bad_count:
        rows.append(("left out when built", count(data.bad_count, "image")))
    table = join(html("<tr><th>{k}</th><td>{v}</td></tr>", k=k, v=v) for k, v in rows)
    split = data.split(run.config.data.split)
    index = material.spread(len(split), min(CONTACT, len(split)), run)
    images = material.pictures(run, data, split.name, index)
    sheet = pictures.contact_sheet(images, columns=12)
    return html(
        '<div class="panel scroll"><table class="data"><tbody>{t}</tbody></table></div><figure class="sheet">{i}'
        "<figcaption>{n} training images, drawn by seed.</figcaption></figure>",
        t=table, n=len(images), i=image(sheet, f"contact sheet of {len(images)} training images"),
    )  # fmt: skip
