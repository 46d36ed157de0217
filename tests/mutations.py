"""Small mistakes that the suite must notice: the list behind `make mutants` (tests/mutants.py runs it).

Each is one or more edits of one file, the old text of which occurs exactly once, and the tests of which at least one
must fail. Keep the tests quick, and name them by function: all their parameters are run.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    name: str  # part: what is wrong
    file: str  # under jepa/
    edits: tuple[tuple[str, str], ...]  # (old text, new text)
    tests: tuple[str, ...]  # FILE::FUNCTION under tests/


def one(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """A mutant of a single edit."""
    return Mutant(name, file, ((old, new),), tests)


IJEPA, VJEPA = "methods/test_ijepa_golden.py::", "methods/test_vjepa_golden.py::"
V21, VIDEO, VIT = "methods/test_vjepa21.py::", "nn/test_video.py::", "nn/test_vit.py::"
MASKS, MASKS3, CLIPS = "test_masks.py::", "test_masks_video.py::", "data/video/test_clips.py::"
OPTIM, CHECK, HEADS = "test_optim.py::", "test_checkpoint.py::", "probe/test_heads.py::"
AHEAD, ANTICIPATION, SIGHT = "probe/test_anticipate.py::", "probe/test_anticipation.py::", "methods/test_foresight.py::"

DATA = (
    one(
        "keyed: streams are not told apart",
        "keyed.py",
        'f"{stream}\\x00{seed}".encode()',
        'f"{seed}".encode()',
        "test_keyed.py::test_streams_seeds_indices_and_subs_are_independent",
    ),
    one(
        "keyed: nine rounds of Philox",
        "keyed.py",
        "for _ in range(10):",
        "for _ in range(9):",
        "test_keyed.py::test_philox_known_answers",
    ),
    one(
        "crop: wrong key, the view left out",
        "data/augment.py",
        '"crop", seed, g, _DRAWS, sub=view',
        '"crop", seed, g, _DRAWS',
        "data/test_augment.py::test_numbers_depend_on_seed_g_and_view_only",
    ),
    one(
        "crop: wrong key, the seed left out",
        "data/augment.py",
        '"crop", seed, g, _DRAWS',
        '"crop", 0, g, _DRAWS',
        "data/test_augment.py::test_numbers_depend_on_seed_g_and_view_only",
    ),
    one(
        "crop: ratio uniform instead of its logarithm",
        "data/augment.py",
        "math.exp(low + values[k + 1] * (high - low))",
        "law.ratio[0] + values[k + 1] * (law.ratio[1] - law.ratio[0])",
        "data/test_augment.py::test_the_law_is_that_of_torchvision",
    ),
    one(
        "crop: mirrored with the other probability",
        "data/augment.py",
        "values[0] < law.hflip",
        "values[0] > law.hflip",
        "data/test_augment.py::test_mirroring_has_its_probability",
    ),
    one(
        "crop: evaluation looks off centre",
        "data/augment.py",
        "view_box(height, width, size, 0.5)",
        "view_box(height, width, size, 0.3)",
        "data/test_augment.py::test_the_centre_box_covers_as_much_as_it_can",
    ),
    one(
        "order: shards in the same order in every epoch",
        "data/order.py",
        '"order.shards", self.seed, epoch',
        '"order.shards", self.seed, 0',
        "data/test_order.py::test_epochs_and_seeds_differ",
    ),
    one(
        "order: blocks shuffled alike in every epoch",
        "data/order.py",
        '"order.block", self.seed, epoch, block',
        '"order.block", self.seed, 0, block',
        "data/test_order.py::test_epochs_and_seeds_differ",
    ),
    one(
        "order: a rank begins one sample late",
        "data/order.py",
        "g[rank * share : (rank + 1) * share]",
        "g[rank * share + 1 : (rank + 1) * share + 1]",
        "data/test_order.py::test_ranks_share_a_step_equally_and_completely",
    ),
    one(
        "quarantine: substitute not keyed",
        "data/samples.py",
        'int(keyed.uniform("substitute", self.seed, g, 1, sub=attempt)[0] * self.size)',
        "int(np.random.default_rng().random() * self.size)",
        "data/test_loader.py::test_substitutes_do_not_depend_on_workers_or_ranks",
    ),
    one(
        "quarantine: every slot gets the same substitute",
        "data/samples.py",
        'keyed.uniform("substitute", self.seed, g, 1',
        'keyed.uniform("substitute", self.seed, 0, 1',
        "data/test_loader.py::test_a_bad_sample_is_replaced_and_written_down_before_use",
    ),
    one(
        "quarantine: entries of other seeds count",
        "data/quarantine.py",
        "if all(values.get(k) == v for k, v in self.identity.items()):",
        "if values:",
        "data/test_loader.py::test_entries_of_another_seed_are_left_alone",
    ),
    one(
        "quarantine: nothing stops a run of bad samples",
        "data/quarantine.py",
        "self.bad > self.max_bad * self.samples",
        "self.bad > self.samples",
        "data/test_loader.py::test_too_many_bad_samples_stop_the_run",
    ),
    one(
        "segments: the onset is where it would be with enough video",
        "data/sources/segments.py",
        "(task.start - begin,)",
        "(self.before,)",
        "data/test_segments.py::test_segments_become_samples_with_what_led_to_them",
    ),
    one(
        "segments: every segment is an original of its own",
        "data/sources/segments.py",
        'hashed("original", task.file)',
        'hashed("original", str(task))',
        "data/test_segments.py::test_segments_become_samples_with_what_led_to_them",
    ),
    one(
        "segments: splits by segment, not by video",
        "data/sources/segments.py",
        "identity=lambda t: str(t.file)",
        "identity=str",
        "data/test_segments.py::test_segments_of_one_video_stay_in_one_split",
    ),
    one(
        "segments: cut from the start of the video",
        "data/video/recode.py",
        "times = start + np.arange",
        "times = np.arange",
        "data/test_segments.py::test_segments_become_samples_with_what_led_to_them",
    ),
)

DECODING = (
    one(
        "times: the frame shown is the next one",
        "data/video/timeline.py",
        'side="right") - 1',
        'side="right")',
        "data/video/test_probe.py::test_variable_rate_is_exact",
    ),
    one(
        "times: no tolerance of half a tick",
        "data/video/timeline.py",
        "dtype=np.float64) + half",
        "dtype=np.float64)",
        "data/video/test_probe.py::test_rounded_clocks_are_no_variable_rate",
    ),
    one(
        "clip: the last place is never taken",
        "data/video/clips.py",
        "(numbers * (room + 1))",
        "(numbers * room)",
        CLIPS + "test_training_takes_every_place_equally_often",
    ),
    one(
        "clip: key without the sample number",
        "data/video/clips.py",
        "seed, g, clips, sub=view",
        "seed, g * 0, clips, sub=view",
        CLIPS + "test_the_key_alone_decides",
    ),
    one(
        "clip: evaluation leaves out the end of the video",
        "data/video/clips.py",
        "np.linspace(0, 1, clips) if",
        "np.linspace(0, 1, clips, endpoint=False) if",
        CLIPS + "test_evaluation_covers_the_video_evenly",
    ),
    one(
        "clip: loops where it should hold the last frame",
        "data/video/clips.py",
        'wanted % len(timeline) if config.short == "loop"',
        'wanted % len(timeline) if config.short == "pad"',
        CLIPS + "test_steps_in_frames",
    ),
    one(
        "clip: one frame of the future is seen",
        "data/video/clips.py",
        "dtype=np.int64)[::-1]",
        "dtype=np.int64)[::-1] - 1",
        CLIPS + "test_clips_end_when_they_are_told_to",
    ),
    one(
        "decoding: turned the wrong way",
        "data/video/with_pyav.py",
        "np.rot90(out, facts.rotation // 90",
        "np.rot90(out, -facts.rotation // 90",
        "data/video/test_decode.py::test_a_turned_video_stands_upright",
    ),
    one(
        "decoding: frames come in their own order",
        "data/video/decode.py",
        "pixels[torch.from_numpy(inverse)]",
        "pixels[torch.from_numpy(np.sort(inverse))]",
        "data/video/test_decode.py::test_by_time_in_any_order_and_more_than_once",
    ),
    one(
        "decoding: blue for red",
        "data/video/with_pyav.py",
        'format="rgb24", interpolation',
        'format="bgr24", interpolation',
        "data/video/test_decode.py::test_colours_are_those_that_were_filmed",
    ),
    one(
        "decoding: a lying header is believed",
        "data/video/probe.py",
        "        if wrong:\n            raise VideoError(",
        "        if wrong and False:\n            raise VideoError(",
        "data/video/test_probe.py::test_lying_about_its_length",
    ),
    one(
        "tubelets: order of time and rows swapped",
        "nn/tokens.py",
        "cut.permute(0, 2, 4, 6, 1, 3, 5, 7)",
        "cut.permute(0, 4, 2, 6, 1, 3, 5, 7)",
        VIDEO + "test_tubelets_equal_the_convolution",
    ),
    one(
        "tubelets: pixels of a patch transposed",
        "nn/tokens.py",
        "cut.permute(0, 2, 4, 6, 1, 3, 5, 7)",
        "cut.permute(0, 2, 4, 6, 1, 3, 7, 5)",
        VIDEO + "test_tubelets_equal_the_convolution",
    ),
)

MASKING = (
    one(
        "masks: the last offset is never drawn",
        "masks/image.py",
        "u[:, :t] * (height - th + 1, width - tw + 1)",
        "u[:, :t] * (height - th, width - tw)",
        MASKS + "test_target_coverage_within_four_sigma_of_its_closed_form",
    ),
    one(
        "masks: context leaks targets",
        "masks/image.py",
        "self._inside(context, ch, cw) & ~union",
        "self._inside(context, ch, cw)",
        MASKS + "test_properties_over_sizes",
    ),
    one(
        "masks: one number for scale and ratio",
        "masks/image.py",
        "r0 + u_ratio * (r1 - r0)",
        "r0 + u_scale * (r1 - r0)",
        MASKS + "test_block_sizes_change_with_the_step_scale_and_ratio_independent",
    ),
    one(
        "masks: trimmed in raster order",
        "masks/base.py",
        "[:, :n].astype(np.int32)",
        "[:, :n].astype(np.int32) * 0",
        MASKS + "test_context_coverage_is_symmetric_under_flips",
    ),
    one(
        "masks: off by one to the right",
        "masks/image.py",
        "(cols >= left) & (cols < left + w)",
        "(cols > left) & (cols <= left + w)",
        MASKS + "test_properties_over_sizes",
    ),
    one(
        "masks: sizes do not change with the step",
        "masks/image.py",
        '"mask.size", self.seed, step, 3',
        '"mask.size", self.seed, 0, 3',
        MASKS + "test_block_sizes_change_with_the_step_scale_and_ratio_independent",
    ),
    one(
        "masks of clips: the last offset is never drawn",
        "masks/video.py",
        "room = np.array(self.grid) - size + 1",
        "room = np.maximum(np.array(self.grid) - size, 1)",
        MASKS3 + "test_union_coverage_within_four_sigma_of_its_closed_form",
    ),
    one(
        "masks of clips: all specs draw alike",
        "masks/video.py",
        "_ExactMask(spec, grid, seed, str(i))",
        '_ExactMask(spec, grid, seed, "0")',
        MASKS3 + "test_specs_differ_and_images_may_have_their_own",
    ),
    one(
        "masks of clips: the context's blocks are visible",
        "masks/video.py",
        "self._trim(~union, self.context_count",
        "self._trim(union | ~union, self.context_count",
        MASKS3 + "test_properties_over_sizes",
    ),
    one(
        "masks of clips: sizes do not change with the step",
        "masks/video.py",
        "self.seed, step, 3))",
        "self.seed, 0, 3))",
        MASKS3 + "test_block_sizes_change_with_the_step_and_areas_hold",
    ),
    one(
        "masks: the official sampler's quirk mended",
        "masks/image.py",
        "torch.randint(0, self.grid[0] - h, (1,)",
        "torch.randint(0, self.grid[0] - h + 1, (1,)",
        IJEPA + "test_reference_sampler_draw_for_draw",
    ),
    one(
        "masks of clips: the official sampler without its last offset",
        "masks/video.py",
        "self.grid[axis] - size[axis] + 1, (1,)",
        "max(1, self.grid[axis] - size[axis]), (1,)",
        VJEPA + "test_reference_sampler_draw_for_draw",
    ),
)

NETS = (
    one("norm: wrong epsilon", "nn/attention.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5", IJEPA + "test_forward"),
    one(
        "block: MLP without its norm",
        "nn/attention.py",
        "x + self.mlp(self.norm2(x))",
        "x + self.mlp(x)",
        IJEPA + "test_forward",
    ),
    one(
        "block: approximate GELU",
        "nn/attention.py",
        "F.gelu(self.fc1(x))",
        'F.gelu(self.fc1(x), approximate="tanh")',
        IJEPA + "test_forward",
    ),
    one(
        "init: output maps shrink too little",
        "nn/attention.py",
        "block.attn.proj.weight.div_((2.0 * depth) ** 0.5)",
        "block.attn.proj.weight.div_(depth ** 0.5)",
        "methods/test_ijepa_options.py::test_weights_at_the_start",
    ),
    one(
        "rope: axes swapped",
        "nn/rope.py",
        "(places[:, :, None] * order)",
        "(places[:, ::-1, None] * order)",
        VIDEO + "test_rotation_against_the_formula",
    ),
    one(
        "rope: frequency quirk removed",
        "nn/rope.py",
        "np.tile(frequencies, 2) if",
        "np.repeat(frequencies, 2) if",
        VJEPA + "test_forward",
    ),
    one(
        "rope: quirk kept where 2.1 corrects it",
        "nn/rope.py",
        "else np.repeat(frequencies, 2)",
        "else np.tile(frequencies, 2)",
        VIDEO + "test_only_the_paired_layout_is_a_rotation",
    ),
    one(
        "rope: turned the other way",
        "nn/rope.py",
        "% 2 == 0, -1.0, 1.0)",
        "% 2 == 0, 1.0, -1.0)",
        VIDEO + "test_rotation_against_the_formula",
    ),
    one(
        "rope: rescaled by sides, not by last places",
        "nn/rope.py",
        "(base_grid - 1) / max(1, side - 1)",
        "base_grid / side",
        VIDEO + "test_rescaled_positions_end_where_the_base_grid_ends",
    ),
    one(
        "rope: gradient turned as forwards",
        "nn/rope.py",
        "sine.squeeze(-3), swap_last=True)",
        "sine.squeeze(-3))",
        VIDEO + "test_gradient_of_the_rotation",
    ),
    one(
        "positions: rows and columns swapped",
        "nn/tokens.py",
        "[np.tile(columns, (grid[0], 1)), np.repeat(rows, grid[1], axis=0)]",
        "[np.repeat(rows, grid[1], axis=0), np.tile(columns, (grid[0], 1))]",
        VIT + "test_position_table_is_row_major_columns_first",
    ),
    one(
        "positions: time's features cut short",
        "nn/tokens.py",
        "(-(-width // 6) * 2,) * 3 if uniform",
        "(width // 6 * 2, *(-(-width // 6) * 2 + 2,) * 2) if uniform",
        VIDEO + "test_sincos_table_places_time_rows_columns",
    ),
    one("pixels: divided by 256", "nn/tokens.py", "1 / (255 * std)", "1 / (256 * std)", VIT + "test_normalise"),
    one(
        "patches: columns before rows",
        "nn/tokens.py",
        "patches.permute(0, 2, 4, 1, 3, 5)",
        "patches.permute(0, 4, 2, 1, 3, 5)",
        VIT + "test_patch_embedding_equals_the_convolution",
    ),
    one(
        "predictor: positions of mask tokens shifted",
        "nn/predictor.py",
        "gather_tokens(self.predictor_pos_embed, target_at)",
        "gather_tokens(self.predictor_pos_embed, [at.roll(1, 1) for at in target_at])",
        IJEPA + "test_forward",
    ),
    one(
        "predictor: context without positions",
        "nn/predictor.py",
        "x = x + gather_tokens(self.predictor_pos_embed, context_at)",
        "x = x + 0 * gather_tokens(self.predictor_pos_embed, context_at)",
        IJEPA + "test_forward",
    ),
    one(
        "video predictor: places of visible and masked tokens swapped",
        "nn/video_predictor.py",
        "places.append(torch.cat([at, asked], dim=1))",
        "places.append(torch.cat([at, asked], dim=1).flip(1))",
        VJEPA + "test_forward",
    ),
    one(
        "video predictor: always the first mask token",
        "nn/video_predictor.py",
        "self.mask_tokens[which % len(self.mask_tokens)] + idle",
        "self.mask_tokens[0] + idle",
        VIDEO + "test_mask_tokens_are_chosen_by_number_modulo_their_count",
    ),
    one(
        "levels: fused in the wrong order",
        "nn/dense.py",
        "torch.cat(self._run(x, keep, self.supervised if fused else self.supervised[-1:]), dim=-1)",
        "torch.cat(self._run(x, keep, self.supervised if fused else self.supervised[-1:])[::-1], dim=-1)",
        V21 + "test_fused_levels_are_block_outputs_through_their_own_norms",
    ),
    one(
        "levels: the last level's norm for all",
        "nn/dense.py",
        "self.norms_block[self.supervised.index(level)]",
        "self.norms_block[-1]",
        V21 + "test_fused_levels_are_block_outputs_through_their_own_norms",
    ),
    one(
        "modality: encoder's tokens are not marked",
        "nn/dense.py",
        "(modality + idle).view(-1)",
        "(0 * modality + idle).view(-1)",
        V21 + "test_an_image_is_one_time_step_embedded_by_itself",
    ),
    one(
        "modality: predictor's tokens are not marked",
        "nn/video_predictor.py",
        "x + mark.to(x.dtype).view(-1)",
        "x + 0 * mark.to(x.dtype).view(-1)",
        V21 + "test_predictor_enters_by_an_mlp_and_marks_every_token",
    ),
    one(
        "pooler: the encoder's epsilon",
        "nn/pooling.py",
        "PROBE_NORM_EPS = 1e-5",
        "PROBE_NORM_EPS = 1e-6",
        "nn/test_pooling.py::test_pooler",
    ),
    one(
        "pooler: missing norm",
        "nn/pooling.py",
        "self.xattn(queries, self.norm1(x))",
        "self.xattn(queries, x)",
        "nn/test_pooling.py::test_pooler",
    ),
    one(
        "pooler: all questions read the first query",
        "nn/pooling.py",
        "answers = self.pooler(x).unbind(1)",
        "answers = [self.pooler(x)[:, 0]] * len(self.linears)",
        HEADS + "test_outputs_and_gradients_are_those_of_the_modules",
    ),
)

METHODS = (
    one(
        "targets: not normalised",
        "losses.py",
        "return F.layer_norm(tokens, tokens.shape[-1:])",
        "return tokens",
        IJEPA + "test_forward",
    ),
    one(
        "targets: levels normalised together",
        "losses.py",
        "tokens.unflatten(-1, (levels, -1))",
        "tokens.unflatten(-1, (1, -1))",
        V21 + "test_targets_are_normalised_level_by_level",
    ),
    one(
        "targets: from the context encoder",
        "methods/ijepa.py",
        "tokens = self.target(images)",
        "tokens = self.encoder(images)",
        IJEPA + "test_trajectory_in_float64",
    ),
    Mutant(
        "targets: with gradient",
        "methods/vjepa.py",
        (
            ("    @torch.no_grad()\n    def targets", "    def targets"),
            ("tokens = self.target(x)  #", "tokens = self.encoder(x)  #"),
        ),
        ("methods/test_vjepa.py::test_the_teacher_takes_no_gradient_and_follows", VJEPA + "test_trajectory_in_float64"),
    ),
    one(
        "targets: centred over the batch",
        "losses.py",
        "tokens - tokens.mean(dim=1, keepdim=True)",
        "tokens - tokens.mean(dim=0, keepdim=True)",
        "methods/test_ijepa_options.py::test_centring_removes_position_and_whole_image_and_nothing_else",
    ),
    one(
        "loss: smooth-L1 with another beta",
        "losses.py",
        "return F.smooth_l1_loss(predicted, target)",
        "return F.smooth_l1_loss(predicted, target, beta=0.5)",
        IJEPA + "test_forward",
    ),
    one(
        "loss: squared error not halved",
        "losses.py",
        "each.square() / 2 if",
        "each.square() if",
        "methods/test_vjepa.py::test_the_loss_is_the_mean_of_each_masks_mean",
    ),
    one(
        "loss: summed over masks",
        "methods/vjepa.py",
        "torch.stack(each).mean()",
        "torch.stack(each).sum()",
        "methods/test_vjepa.py::test_the_loss_is_the_mean_of_each_masks_mean",
    ),
    one(
        "context: sees the targets",
        "methods/vjepa.py",
        "visible = self.encoder(x, masks.context)",
        "visible = [torch.stack([row[i] for row, i in zip(self.encoder(x), at)]) for at in masks.context]",
        VJEPA + "test_forward",
    ),
    one(
        "2.1: distance squared",
        "losses.py",
        "squared.sqrt().view(batch, count)",
        "squared.view(batch, count)",
        V21 + "test_distances_against_brute_force",
    ),
    one(
        "2.1: weight 1 / d",
        "methods/vjepa21.py",
        ".rsqrt() for d, at",
        ".reciprocal() for d, at",
        V21 + "test_nearness_of_visible_tokens",
    ),
    one(
        "2.1: loss on visible tokens unweighted",
        "methods/vjepa21.py",
        "loss = masked + weight * seen",
        "loss = masked + seen",
        V21 + "test_the_loss_put_together_by_hand",
    ),
    one(
        "2.1: weight of visible tokens goes on rising",
        "methods/vjepa21.py",
        "risen = min(max(risen, 0.0), 1.0)",
        "risen = max(risen, 0.0)",
        V21 + "test_weight_of_visible_tokens_warms_up_as_in_the_official_schedule",
    ),
    one(
        "2.1: images masked like clips",
        "methods/vjepa21.py",
        "(masks.BlockSpec(blocks=10),)  # of images",
        "None  # of images",
        V21 + "test_images_have_masks_of_their_own",
    ),
    one(
        "EMA: momentum swapped",
        "ema.py",
        "list(target), 1.0 - momentum",
        "list(target), momentum",
        "test_ema.py::test_update_is_the_definition_and_touches_only_the_target",
    ),
    one(
        "EMA: one step ahead",
        "ema.py",
        "min(step / total_steps, 1.0)",
        "min((step + 1) / total_steps, 1.0)",
        "test_ema.py::test_momentum_is_linear_and_clamped",
    ),
    one(
        "EMA: the teacher is trained",
        "ema.py",
        "target.requires_grad_(False)",
        "target.requires_grad_(True)",
        "test_ema.py::test_teacher_is_an_independent_copy_in_eval_mode",
    ),
    Mutant(
        "EMA: before the optimiser's step",
        "train.py",
        (
            (
                "        taken, norm = optim.take_step(",
                "        follow(self.method, self.values, keep)\n        taken, norm = optim.take_step(",
            ),
            ("            follow(self.method, self.values, keep)\n", "            pass\n"),
        ),
        ("train/test_loop.py::test_the_loop_is_the_plain_algorithm",),
    ),
    one(
        "looking ahead: the first level is shown",
        "methods/vjepa21.py",
        "tokens[..., -self.encoder.width :]",
        "tokens[..., : self.encoder.width]",
        SIGHT + "test_what_is_shown_is_the_encoders_output",
    ),
    one(
        "looking ahead: a mask token that nothing trained",
        "methods/vjepa.py",
        "self._mask_tokens(0, 1)[0] if mask_token is None",
        "self._mask_tokens(1, 1)[0] if mask_token is None",
        SIGHT + "test_the_mask_token_that_was_trained_stands_for_what_is_predicted",
    ),
)

OPTIMISING = (
    one(
        "weight decay: on biases",
        "optim.py",
        "(p.ndim > 1 and _is_bias(name)), decayed=False)",
        "(p.ndim > 1 and _is_bias(name)), decayed=True)",
        OPTIM + "test_parameters_are_decayed_as_in_the_official_code",
    ),
    one(
        "weight decay: a step late",
        "optim.py",
        "(step + 1) / max(1, total)",
        "step / max(1, total)",
        OPTIM + "test_learning_rate_and_weight_decay_are_the_official_ones",
    ),
    one(
        "weight decay: reaches every group",
        "optim.py",
        'values["wd"] if group["decayed"] else 0.0',
        'values["wd"]',
        OPTIM + "test_values_reach_the_groups_they_are_for",
    ),
    one(
        "learning rate: a step late",
        "optim.py",
        "    done = step + 1\n",
        "    done = step\n",
        OPTIM + "test_learning_rate_and_weight_decay_are_the_official_ones",
    ),
    one(
        "learning rate: rises again past the end",
        "optim.py",
        "min(1.0, (done - warmup) / max(1, total - warmup))",
        "(done - warmup) / max(1, total - warmup)",
        OPTIM + "test_schedules_are_pure_and_stay_at_their_end",
    ),
    one(
        "learning rate: schedule not stretched",
        "optim.py",
        "int(self.config.schedule_scale * self.total_steps)",
        "int(self.total_steps)",
        OPTIM + "test_schedule_scale_stretches_the_schedule_past_the_run",
    ),
    one(
        "clipping: at twice the norm",
        "optim.py",
        "clip_grads_with_norm_(parameters, clip_norm, norm)",
        "clip_grads_with_norm_(parameters, 2 * clip_norm, norm)",
        OPTIM + "test_clipping_scales_all_gradients_together",
    ),
)

CHECKPOINTS = (
    one(
        "checkpoint: hashes are not looked at",
        "checkpoint/folder.py",
        '_hash(path / name) != want["sha256"]:',
        '_hash(path / name) == "":',
        CHECK + "test_any_damage_to_any_file_is_found",
    ),
    one(
        "checkpoint: the oldest one wins",
        "checkpoint/folder.py",
        "sorted(numbers, reverse=True)",
        "sorted(numbers)",
        CHECK + "test_the_newest_good_one_wins_and_the_bad_one_is_named",
    ),
    one(
        "checkpoint: one too few is kept",
        "checkpoint/folder.py",
        "steps(run_dir)[:-keep]",
        "steps(run_dir)[: 1 - keep or None]",
        CHECK + "test_which_checkpoints_are_kept",
    ),
    one(
        "checkpoint: loads what fits",
        "checkpoint/io.py",
        '    _compare(path, "model", {',
        '    (lambda *given: None)(path, "model", {',
        CHECK + "test_a_checkpoint_of_another_architecture_lists_what_differs",
    ),
    one(
        "checkpoint: the context encoder is exported",
        "methods/base.py",
        'return "target" if "target" in self.encoders() else "context"',
        'return "context"',
        CHECK + "test_load_encoder_is_the_methods_encoder_with_normalisation_inside",
    ),
)

PROBES = (
    one(
        "bootstrap: not clustered",
        "probe/bootstrap.py",
        "np.unique(np.asarray(clusters), return_inverse=True)",
        "np.unique(np.arange(len(clusters)), return_inverse=True)",
        "probe/test_bootstrap.py::test_correlated_clusters_widen_the_interval_as_the_design_effect_says",
    ),
    one(
        "bootstrap: tails twice as large",
        "probe/bootstrap.py",
        "[tail, 100 - tail]",
        "[2 * tail, 100 - 2 * tail]",
        "probe/test_bootstrap.py::test_value_is_the_plain_mean_and_lies_in_the_interval",
    ),
    one(
        "kNN: the worst k is taken",
        "probe/knn.py",
        "int(accuracy.argmax())",
        "int(accuracy.argmin())",
        "probe/test_knn.py::test_k_is_chosen_on_validation_not_on_test",
    ),
    one(
        "linear probe: settings chosen by training accuracy",
        "probe/linear.py",
        "score_heads(heads, *val)",
        "score_heads(heads, *train)",
        "probe/test_linear.py::test_choice_follows_validation_and_edges_are_named",
    ),
    one(
        "attentive probe: settings chosen by training accuracy",
        "probe/attentive.py",
        "accuracy, loss = score(grid, *val)",
        "accuracy, loss = score(grid, *train)",
        "probe/test_attentive.py::test_choice_follows_validation_and_edges_are_named",
    ),
    one(
        "attentive probe: learning rate a step ahead",
        "probe/fit.py",
        "                number, start=recipe.start_lr",
        "                number + 1, start=recipe.start_lr",
        HEADS + "test_each_head_of_the_grid_ends_where_it_ends_alone",
    ),
    one(
        "attentive probe: logits scaled by the whole width",
        "probe/heads.py",
        "(width // shape.heads) ** -0.5",
        "width**-0.5",
        HEADS + "test_outputs_and_gradients_are_those_of_the_modules",
    ),
    one(
        "attentive probe: what is not known counts",
        "probe/attentive.py",
        "ignore_index=-1)",
        "ignore_index=-100)",
        HEADS + "test_several_questions_add_up_and_leave_out_what_is_not_known",
    ),
    one(
        "views: logits averaged, not probabilities",
        "probe/clips.py",
        "average_features(logits.double().softmax(dim=-1))",
        "average_features(logits.double()).softmax(dim=-1)",
        "probe/test_clips.py::test_one_confident_view_outweighs_a_hesitant_one",
    ),
    one(
        "views: clips joined in another order",
        "probe/clips.py",
        "tokens.transpose(1, 2).flatten(2, 3)",
        "tokens.flip(1).transpose(1, 2).flatten(2, 3)",
        "probe/test_clips.py::test_joining_keeps_a_views_clips_together",
    ),
    one(
        "dense probe: union counts the overlap twice",
        "probe/dense.py",
        "torch.cat([both, said + there - both])",
        "torch.cat([both, said + there])",
        "probe/test_dense.py::test_miou_is_scikit_learns",
    ),
    one(
        "ridge: mean of the targets forgotten",
        "probe/ridge.py",
        "targets.double().mean(dim=0).to(device)",
        "(0 * targets.double().mean(dim=0)).to(device)",
        "probe/test_ridge.py::test_closed_form_is_scikit_learns",
    ),
    one(
        "recall: of samples, not of classes",
        "probe/anticipate.py",
        "return np.asarray(np.nanmean(share, axis=-1))",
        "return np.asarray(hits.sum(axis=-1) / there.sum(axis=-1))",
        AHEAD + "test_class_mean_recall_is_scikit_learns",
    ),
    one(
        "anticipation: times rounded up",
        "probe/anticipate.py",
        "torch.floor(seconds",
        "torch.ceil(seconds",
        AHEAD + "test_times_are_whole_and_rounded_down",
    ),
    one(
        "anticipation: the newest tokens leave the context",
        "probe/anticipate.py",
        "torch.cat([context[:, asked:], found[-1]]",
        "torch.cat([context[:, :-asked], found[-1]]",
        AHEAD + "test_places_asked_for",
    ),
    one(
        "anticipation: the clip ends with the action's start",
        "probe/anticipation.py",
        "dtype=np.float64) - asked.seconds",
        "dtype=np.float64)",
        ANTICIPATION + "test_the_clip_ends_so_many_seconds_before_the_action",
    ),
    Mutant(
        "anticipation: settings chosen on test instead of val",
        "probe/anticipation.py",
        (
            ("val = _hits(grid, tokens[1], actions.labels[1]", "val = _hits(grid, tokens[2], actions.labels[2]"),
            ("        labels = actions.labels[1][:, q]", "        labels = actions.labels[2][:, q]"),
        ),
        (ANTICIPATION + "test_heads_are_chosen_on_validation_not_on_test",),
    ),
    one(
        "probe: the gap has the wrong sign",
        "probe/rows.py",
        "self._by_label.mean(main - right)",
        "self._by_label.mean(right - main)",
        "probe/test_run.py::test_gap_is_the_paired_difference",
    ),
)

SOLVE, AGENT, GOOD = "plan/test_solvers.py::", "plan/test_agent.py::", "plan/test_objective.py::"

PLANNING = (
    one(
        "cem: the worst are the elites",
        "plan/solvers/base.py",
        "values.topk(count, dim=1, largest=False)",
        "values.topk(count, dim=1, largest=True)",
        SOLVE + "test_bowl",
    ),
    one(
        "solvers: a row's noise does not depend on its key",
        "plan/solvers/base.py",
        'repr(("plan", seed, tuple(map(int, key))))',
        'repr(("plan", seed))',
        SOLVE + "test_equal_keys_and_others",
    ),
    one(
        "solvers: NaN is the best cost",
        "plan/solvers/base.py",
        "return values.nan_to_num(nan=torch.inf",
        "return values.nan_to_num(nan=-torch.inf",
        SOLVE + "test_nan_is_never_chosen",
    ),
    one(
        "icem: no elites come back to warm rows",
        "plan/solvers/icem.py",
        "torch.where(start.warm[:, None, None, None], back, z[:, :old])",
        "z[:, :old]",
        SOLVE + "test_elites_of_icem_come_back",
    ),
    one(
        "icem: cold rows get the fill as elites",
        "plan/solvers/icem.py",
        "torch.where(start.warm[:, None, None, None], back, z[:, :old])",
        "back",
        SOLVE + "test_rows_with_and_without_a_plan_before",
    ),
    one(
        "mppi: the worst weigh most",
        "plan/solvers/mppi.py",
        "torch.softmax(-(values",
        "torch.softmax((values",
        "plan/test_reference.py::test_mppi_is_the_same",
    ),
    one(
        "agent: nothing of the plan is carried on",
        "plan/agent.py",
        "if self.mpc.warm and self.mpc.execute < self.mpc.horizon else None",
        "if False else None",
        AGENT + "test_warm_starts_save_iterations",
    ),
    one(
        "agent: history at every step of the environment",
        "plan/agent.py",
        "if len(row.taken) % self.space.stride == 0]",
        "if True]",
        AGENT + "test_history_at_the_frame_skip",
    ),
    one(
        "objective: growth counts backwards",
        "plan/objective.py",
        "self.config.growth ** torch.arange(values.shape[-1]",
        "self.config.growth ** -torch.arange(values.shape[-1]",
        GOOD + "test_steps",
    ),
    one(
        "objective: the reward of a later step is worth more",
        "plan/objective.py",
        "self.config.discount ** torch.arange(rewards",
        "self.config.discount ** -torch.arange(rewards",
        GOOD + "test_other_terms",
    ),
    one(
        "actions: outside the bounds",
        "plan/space.py",
        "return self.clip(z * self.scale + self.centre)",
        "return z * self.scale + self.centre",
        "plan/test_space.py::test_units_are_those_of_the_data",
    ),
)


EPISODES = (
    one(
        "steps: actions of a window begin one step late",
        "data/steps.py",
        "part = values[start : start + wanted]",
        "part = values[start + 1 : start + 1 + wanted]",
        "data/test_steps.py::test_a_window_has_the_arrays_of_its_frames",
    ),
    one(
        "steps: arrays of frames ignore the stride",
        "data/steps.py",
        "start + self.stride * np.arange(self.frames)",
        "start + np.arange(self.frames)",
        "data/test_steps.py::test_a_window_has_the_arrays_of_its_frames",
    ),
    one(
        "steps: statistics of a chunk are repeated number by number instead of step by step",
        "data/steps.py",
        "return np.tile(array.mean, times), np.tile(array.std, times)",
        "return np.repeat(array.mean, times), np.repeat(array.std, times)",
        "data/test_steps.py::test_choices_are_one_hot",
    ),
    one(
        "episode: the last action goes on where zeros are asked for",
        "data/episode.py",
        'if given.pad == "last" and len(values)',
        "if len(values)",
        "data/test_steps.py::test_a_window_longer_than_its_episode_holds_the_end",
    ),
    one(
        "episode: rewards of a chunk are not summed",
        "data/episode.py",
        'parts.any(1) if given.chunk == "any" else parts.sum(1)',
        'parts.any(1) if given.chunk == "any" else parts[:, -1]',
        "data/test_steps.py::test_a_window_has_the_arrays_of_its_frames",
    ),
    one(
        "arrays: a pair of parts is joined without the distance of their means",
        "data/arrays.py",
        " + away**2 * self.count * len(rows) / total",
        "",
        "data/test_arrays.py::test_statistics_in_parts_are_those_of_everything",
    ),
    one(
        "arrays: NaN passes",
        "data/arrays.py",
        'if values.dtype.kind == "f" and not np.isfinite(values).all():',
        "if False:",
        "data/envs/test_rollouts.py::test_actions_that_are_nan",
    ),
    one(
        "assemble: held-out episodes count in the statistics",
        "data/assemble.py",
        'for part in pieces.get("train", []):',
        "for part in [part for parts in pieces.values() for part in parts]:",
        "data/envs/test_rollouts.py::test_the_manifest_says_what_the_arrays_are",
    ),
    one(
        "rollouts: all splits get the same episodes",
        "data/sources/rollouts.py",
        "number = _SPLIT * list(c.episodes).index(split) + episode",
        "number = episode",
        "data/envs/test_rollouts.py::test_episodes_of_different_splits_differ",
    ),
    one(
        "swm: rewards stay with the frame that they came with",
        "data/sources/swm.py",
        "arrays |= {name: arrays[name][1:] for name in late}",
        "arrays |= {name: arrays[name][:-1] for name in late}",
        "data/test_recorded.py::test_stable_worldmodel_hdf5",
    ),
    one(
        "lerobot: rows of an episode in the order of the file",
        "data/sources/lerobot.py",
        'table = table.sort_by("frame_index")',
        "pass",
        "data/test_lerobot.py::test_actions_and_states_come_with_their_frames",
    ),
)

PLANS, RULES, SWM = "plan/test_run.py::", "plan/test_protocol.py::", "plan/test_swm.py::"

EVALUATING = (
    one(
        "wilson: the continuity term is missing",
        "plan/protocol.py",
        "share * (1 - share) / n + z * z / (4 * n * n)",
        "share * (1 - share) / n",
        RULES + "test_wilson_is_scipys",
    ),
    one(
        "protocol: a table of two tasks",
        "plan/protocol.py",
        'if (other["protocol"], other["fingerprint"]) != (first["protocol"], first["fingerprint"]):',
        "if False:",
        RULES + "test_other_tasks_are_refused",
    ),
    one(
        "starts: episodes that were trained on",
        "plan/starts.py",
        'if goals.split in ("train", data.split):',
        "if False:",
        PLANS + "test_episodes_that_do_not_fit",
    ),
    one(
        "starts: the last start of an episode is never drawn",
        "plan/starts.py",
        "np.maximum(lengths - offset, 0)",
        "np.maximum(lengths - offset - 1, 0)",
        PLANS + "test_starts_are_drawn_evenly_and_all_of_them_at_most",
    ),
    one(
        "starts: the picture of the start is a frame late",
        "plan/starts.py",
        "frames[at].permute(1, 2, 0).contiguous().numpy() for at in (frame, frame + offset)",
        "frames[at].permute(1, 2, 0).contiguous().numpy() for at in (frame + 1, frame + offset)",
        PLANS + "test_pictures_are_those_of_the_states",
    ),
    one(
        "trial: an environment that failed has succeeded",
        "plan/trial.py",
        "self.error, self.ended, self.success = str(error), True, False",
        "self.error, self.ended, self.success = str(error), True, True",
        PLANS + "test_an_environment_that_fails_on_the_way",
    ),
    one(
        "trial: a step beyond the budget",
        "plan/trial.py",
        "return self.ended or self.steps >= self.budget",
        "return self.ended or self.steps > self.budget",
        PLANS + "test_plans_reach_goals_and_the_file_says_how",
    ),
    one(
        "planner: plans depend on what is planned beside",
        "plan/act.py",
        "keys=[p.index for p in problems]",
        "keys=list(range(len(problems)))",
        PLANS + "test_what_is_planned_depends_on_the_seed_alone",
    ),
    one(
        "journal: finished episodes are planned again",
        "plan/run.py",
        "[p for p in found if (PLANNER, p.number) not in journal.trials]",
        "list(found)",
        PLANS + "test_an_interrupted_run_goes_on",
    ),
    one(
        "swm: candidates are taken for actions of the environment",
        "plan/swm.py",
        "self.model.action_scale.back(action_candidates.to(self._device))",
        "action_candidates.to(self._device)",
        SWM + "test_candidates_are_in_the_units_of_the_model",
    ),
    one(
        "swm: the encoding of another frame is taken",
        "plan/swm.py",
        "and all(map(_equal, parts, self._last[0]))",
        "and True",
        SWM + "test_one_encoding_for_equal_infos_and_gradients",
    ),
)

MUTANTS = (
    *DATA, *DECODING, *EPISODES, *MASKING, *NETS, *METHODS, *OPTIMISING, *CHECKPOINTS, *PROBES, *PLANNING, *EVALUATING
)  # fmt: skip
