"""The sections made of pictures: masks, feature maps, attention, nearest neighbours, the data card."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jepa.data import Manifest
from jepa.errors import JepaError
from jepa.nn.rope import Grid
from jepa.report import material, panels, pictures
from jepa.report.markup import Html, count, film, html, image, join, number, percent
from jepa.report.page import Section, missing
from jepa.report.panels import Panel, Sample
from jepa.report.read import Run

MASKED = 6  # crops shown with their masks
MAPPED = 9  # images shown with feature maps
LOOKED = 6  # images shown with attention
CLIPS = 4  # clips shown moving, in each section
TABLES = 2  # of them also still, over time
QUERIES = 6
NEAREST = 6
CONTACT = 48
DRAWN_RUNS = 4  # more runs than that get no pictures of their own


def sections(runs: Sequence[Run], device: str) -> list[Section]:
    """The five picture sections."""
    return [
        Section(
            "masks", "What is hidden, what must be predicted",
            "The first training samples of the run with exactly the masks they got. The encoder sees only the patches "
            "that are left; from them it has to predict what the target encoder says about the coloured ones.",
            _each(runs, masks), "Masks",
        ),
        Section(
            "features", "What the encoder sees",
            "Each patch is coloured by the three directions in which patches differ most: patches of one colour look "
            "alike to the encoder. An encoder that understands gives things and background different colours.",
            _each(runs, lambda run: features(run, device)), "Features",
        ),
        Section(
            "attention", "Where the encoder looks",
            "Attention decides which patches a patch takes up information from: pale patches are looked at most, dark "
            "ones least. Scales are stretched, so mind the figures below before reading much into a contrast.",
            _each(runs, lambda run: attention(run, device)), "Attention",
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
    """Crop, context and targets of the first samples, for every source of the run."""
    parts = []
    for source in material.sources(run.config):
        clips = (run.config.data if source == "data" else run.config.mix[source]).clip is not None
        found = material.crops(run, CLIPS if clips else MASKED, source)
        if found is None:
            return missing("This method uses no masks.")
        groups = found.groups
        parts += [_mask_group(run, found, group, 2 if len(groups) > 1 else MASKED) for group in range(len(groups))]
    return join(parts)


def _mask_group(run: Run, found: material.Crops, group: int, most: int) -> Html:
    (context, targets), of = found.groups[group], len(found.groups)
    size, kept = int(np.prod(found.grid)), context.shape[1]
    shown = [panels.mask_panels(found, i, group) for i in range(min(most, len(found.images)))]
    first = group if found.paired else 0
    names = [f"target block {n + 1}" for n in range(len(targets))] if len(targets) > 1 else ["to be predicted"]
    colours = join(
        html(
            '<li><i style="background:rgb({c})"></i>{n}</li>', n=name, c=_rgb(pictures.TARGET_COLOURS[(first + i) % 4])
        )
        for i, name in enumerate(names)
    )
    which = f"mask {group + 1} of {of}, " if of > 1 else ""
    which += f"source {found.source}, " if run.config.mix else ""
    held, left = [t.shape[1] for t in targets], size - kept - targets[0].shape[1]
    if len(targets) > 1:
        what = f"the {len(targets)} target blocks hold {', '.join(map(str, held))} patches. "
        what += "Blocks may overlap each other, never the context."
    else:
        what = f"{held[0]} ({percent(held[0] / size, 0)}) are to be predicted"
        what += f"; the other {left} are neither, so that every sample keeps equally many." if left else "."
    body = _shown(shown, found.grid, 2, tables=1)
    return html(
        '<figure class="group"><ul class="swatches"><li><i style="background:rgb({g})"></i>hidden from the context '
        "encoder</li>{l}</ul>{c}<figcaption>Samples g = {a} to {b} of step 0, {w}seed {s}: {k} of {n} patches ({p}) "
        "are context, {t}{m}</figcaption></figure>",
        g=_rgb(pictures.HIDDEN[1]), l=colours, c=body, a=found.g[0],
        b=found.g[len(shown) - 1], w=which, s=run.config.seed, k=kept, n=size, p=percent(kept / size, 0), t=what,
        m=_steps(found.grid, shown[0], body),
    )  # fmt: skip


def _rgb(colour: tuple[int, int, int]) -> str:
    return ",".join(map(str, colour))


# --- samples: cards of images, films of clips ---------------------------------------------------------------------


def _shown(samples: Sequence[Sample], grid: Grid, headed: int, tables: int = TABLES, wide: bool = True) -> Html:
    """A card for each sample, the first `headed` of them with headings; of clips also tables over time."""
    cards = [_card(sample, i < headed) for i, sample in enumerate(samples)]
    moving = panels.moments(samples) > 1
    css = "cards two" if wide or moving else "cards"
    still = join(_table(sample, grid) for sample in samples[:tables]) if moving else Html("")
    return html('<div class="{css}">{c}</div>{t}', css=css, c=join(cards), t=still)


def _card(sample: Sample, headed: bool) -> Html:
    heads = join(html('<span class="head">{n}</span>', n=p.head) for p in sample) if headed else Html("")
    return html('<div class="strip three">{h}{c}</div>', h=heads, c=_film(sample) if _moves(sample) else _tiles(sample))


def _moves(sample: Sample) -> bool:
    return panels.moments([sample]) > 1


def _tiles(sample: Sequence[Panel]) -> Html:
    return join(_image(panel.tiles[0], panel.alt) for panel in sample)


def _film(sample: Sample) -> Html:
    shots, kind = panels.film([sample], gap=6, headed=False), panels.page_format()
    alt = "film, side by side: " + "; ".join(panel.alt for panel in sample)
    return film(panels.encoded(shots, kind), kind, shots[len(shots) // 2], alt)


def _table(sample: Sample, grid: Grid) -> Html:
    """The panels of a clip as rows, its time steps as columns."""
    names = join(html("<li>{n}</li>", n=panel.head) for panel in sample)
    alt = "one column for each time, in rows: " + "; ".join(panel.alt for panel in sample)
    return html(
        '<div class="time"><ul aria-hidden="true">{n}</ul>{i}</div>',
        n=names, i=image(panels.over_time([sample], grid, headed=False), alt),
    )  # fmt: skip


def _steps(grid: Grid, sample: Sample, body: Html) -> str:
    """For captions: what a column of `_table` is, and what it all weighs; nothing for images."""
    if not _moves(sample):
        return ""
    frames = count(len(sample[0].tiles) // grid[0], "frame")
    of = f", {panels.COLUMNS} of {grid[0]} shown" if grid[0] > panels.COLUMNS else ""
    weight = f"{number(len(body) / 1e6, 2)}\u00a0MB"
    return f" Below the films the same over time, a column for every {frames}{of}. Both take {weight} of this page."


def _image(picture: pictures.Picture, alt: str) -> Html:
    return image(picture, alt, "pixel" if max(picture.size) < pictures.SIDE // 2 else "")


# --- feature maps -------------------------------------------------------------------------------------------------


def features(run: Run, device: str) -> Html:
    """Images or clips beside feature maps of the trained and of a random encoder."""
    if not run.checkpoints:
        return _no_checkpoint(run)
    pair = material.encoders(run, device)
    found = material.features(run, material.view(run), pair, device)
    clips = found.images.ndim == 5
    heads = f"{pair[0].which}, step {pair[0].step}", "random init"
    shown, (share, share0) = panels.feature_panels(found, CLIPS if clips else MAPPED, heads)
    off = "What a place in the image adds by itself is taken off first."
    if clips:
        off = "What a place and what the whole clip adds by itself is taken off first."
    body = _shown(shown, found.grid, 2 if clips else 3, wide=False)
    return html(
        "<figure>{c}<figcaption>First three principal components of patch features as red, green and blue, fitted to "
        "{n} {s} {k} at once, so that a colour means the same in every picture of a column. {o} The colours carry {a} "
        "of the variance that is left (random init: {b}).{m}</figcaption></figure>",
        c=body, n=len(found.images), s=found.split,
        k="clips" if clips else "images", o=off, a=percent(share, 0), b=percent(share0, 0),
        m=_steps(found.grid, shown[0], body),
    )  # fmt: skip


# --- attention ----------------------------------------------------------------------------------------------------


def attention(run: Run, device: str) -> Html:
    """Images or clips beside the attention of the last block: what all patches look at, and what one looks at."""
    if not run.checkpoints:
        return _no_checkpoint(run)
    seen, encoder = material.view(run), material.trained(run, device)
    found = material.attention(run, seen, encoder, device, CLIPS if len(seen.data.size) == 3 else LOOKED)
    shown, (received, chosen) = panels.attention_panels(found, len(found.images))
    heads = found.chosen.shape[1]
    by_head = panels.head_panels(found, 0)
    each = _table(by_head, found.grid) if _moves(by_head) else _head_strip(by_head)
    more = f", {len(by_head) - 1} shown" if heads > len(by_head) - 1 else ""
    body = _shown(shown, found.grid, 2, tables=1)
    return html(
        "<figure>{c}<figcaption>Block {l} of {d} of the {w} encoder (step {t}), mean over {h}. 1 is an even share for "
        "each of {n} patches; from dark to pale the middle goes from {r0} to {r1}, the right from {c0} to {c1}. The "
        "framed patch is the middle one{i}.{m}</figcaption></figure>"
        '<figure class="group">{e}<figcaption>The first of them by head{o}: what the framed patch looks at, each head '
        "on a scale of its own.</figcaption></figure>",
        c=body, l=found.layer + 1, d=found.depth, w=encoder.which, t=encoder.step,
        h=count(heads, "head"), n=int(np.prod(found.grid)), r0=number(received[0], 2), r1=number(received[1], 2),
        c0=number(chosen[0], 2), c1=number(chosen[1], 2), i=" of the middle time" if found.grid[0] > 1 else "",
        m=_steps(found.grid, shown[0], body), e=each, o=more,
    )  # fmt: skip


def _head_strip(sample: Sample) -> Html:
    heads = join(html('<figure>{i}<figcaption>{n}</figcaption></figure>', i=_image(p.tiles[0], p.alt), n=p.head)
                 for p in sample)  # fmt: skip
    return html('<div class="strip heads">{h}</div>', h=heads)


def _no_checkpoint(run: Run) -> Html:
    return missing("The run has no complete checkpoint yet.", f"jepa train {run.path} --resume")


# --- neighbours ---------------------------------------------------------------------------------------------------


def neighbours(run: Run, device: str) -> Html:
    """Queries with their nearest training images, right and wrong by class label."""
    if not run.checkpoints:
        return _no_checkpoint(run)
    seen, encoder = material.view(run), material.trained(run, device)
    data = seen.manifest
    found = material.pools(run, seen, encoder, device, QUERIES)
    near, cosines = pictures.nearest(found.queries, found.bank, NEAREST)
    shown = material.pictures(seen, run.config.data.split, found.bank_index[near.flatten().numpy()])
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
        words = count(len(split), data.media)
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
        rows.append(("left out when built", count(data.bad_count, data.media)))
    table = join(html("<tr><th>{k}</th><td>{v}</td></tr>", k=k, v=v) for k, v in rows)
    split = data.split(run.config.data.split)
    index = material.spread(len(split), min(CONTACT, len(split)), run)
    images = material.pictures(material.View(data, split, run.config.data), split.name, index)
    sheet = pictures.contact_sheet(images, columns=12)
    return html(
        '<div class="panel scroll"><table class="data"><tbody>{t}</tbody></table></div><figure class="sheet">{i}'
        "<figcaption>{n} training {m}s, drawn by seed.</figcaption></figure>",
        t=table, n=len(images), m=data.media, i=image(sheet, f"contact sheet of {len(images)} training {data.media}s"),
    )  # fmt: skip
