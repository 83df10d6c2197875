"""Break the core on purpose, one line at a time, and see the tests fail: `python -m tests.mutations [word ...]`.

Every row of the table changes one place of a temporary copy of the package and names the tests that must notice.
A row is killed if each of them fails; the run is good if every row is killed and every property of the core is
named by some row. With words, only the rows in whose file or tests one of them occurs are run.
"""

# ruff: noqa: E501 (one break is one row of the table)
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
JOBS = int(os.environ.get("MUTATION_JOBS", "2"))
PREFIX = "test_property_"

# file, a snippet that occurs once in it, what to put there, the properties (without prefix) or tests that must fail
MUTATIONS: list[tuple[str, str, str, str]] = [
    ("tokens.py", "x = torch.where(self.mask.unsqueeze(-1), x, 0.0)", "pass", "poison_behind_a_mask_reaches_no_normalized_token_and_no_gradient poisoned_padding_changes_neither_scores_nor_gradients poisoned_padding_changes_nothing_in_the_whole_scorer similarity_is_the_cosine_of_every_token_pair_and_zero_at_pads"),
    ("tokens.py", "x = x.to(torch.promote_types(x.dtype, torch.float32))", "pass", "half_tokens_are_widened_before_they_are_normalized half_features_score_in_fp32_and_autocast_changes_nothing scorer_widens_half_features_and_ignores_autocast"),
    ("tokens.py", "x / norm.clamp_min(EPS))", "x / (norm + 1e-3))", "normalized_tokens_equal_oracle_and_pads_are_zero positive_scaling_of_any_token_changes_nothing"),
    ("tokens.py", "torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS))", "x / norm", "a_zero_token_stays_zero_with_zero_gradient normalized_tokens_equal_oracle_and_pads_are_zero"),
    ("tokens.py", "torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS))", "torch.where(norm > EPS, x / norm.clamp_min(EPS), 0.0)", "a_bad_real_token_makes_nan_of_its_item_s_scores_alone a_bad_item_spoils_its_own_scores_and_no_others"),
    ("tokens.py", "unit = any(part.unit for part in parts)", "unit = all(part.unit for part in parts)", "joining_normalizes_the_parts_that_are_not_unit"),
    ("tokens.py", "else self.mask[rows]", "else self.mask[rows].flip(0)", "slices_joined_are_the_whole indexing_takes_the_same_items_of_every_grain"),
    ("tokens.py", "_pad(_mask(part), length)", "(_pad(_mask(part), length) | True)", "joining_pads_to_the_longest_and_masks_the_pads slices_joined_are_the_whole"),
    ("tokens.py", "(t.features, t.mask, ", "(t.features, None, ", "saving_and_loading_gives_the_same_features"),
    ("tokens.py", "if self.unit:", "if False:", "unit_tokens_are_compared_as_they_are_but_for_their_pads"),
    ("tokens.py", "(EPS)), self.mask, unit=True)", "(EPS)), self.mask)", "normalizing_twice_is_normalizing_once"),
    ("tokens.py", "self.features.to(device=device, dtype=dtype)", "self.features.to(device=device)", "moving_keeps_masks_and_changes_dtype_alone"),
    ("reduce.py", "count = mask.sum(dim).clamp_min(1)", "count = mask.sum(dim) + 1", "reduction_equals_oracle_over_real_entries no_mask_means_all_real aggregator_equals_oracle"),
    ("reduce.py", "torch.where(mask, x, torch.finfo(x.dtype).min)", "torch.where(mask, x, 0.0)", "reduction_equals_oracle_over_real_entries aggregator_equals_oracle appended_padding_changes_nothing grain_with_any_aggregator_equals_oracle preset_equals_oracle four_grains_equal_oracle"),
    ("reduce.py", "_lowest(x, mask).amax(dim)", "_lowest(x, mask).max(dim).values", "tied_maxima_share_the_gradient_evenly"),
    ("reduce.py", "_lowest(x, mask).amax(dim)", "_lowest(x, None).amax(dim)", "masked_entries_reach_neither_result_nor_gradient reduction_equals_oracle_over_real_entries"),
    ("reduce.py", "        x = torch.where(mask, x, 0.0)\n", "", "masked_entries_reach_neither_result_nor_gradient"),
    ("reduce.py", "_lowest(x / temperature, mask).softmax(dim)", "_lowest(-x / temperature, mask).softmax(dim)", "one_level_of_attention_lies_between_mean_and_maximum one_level_of_attention_does_not_rise_with_temperature aggregator_equals_oracle"),
    ("reduce.py", "_lowest(x / temperature, mask).softmax(dim)", "_lowest(x / 0.01, mask).softmax(dim)", "aosm_tends_to_mean_mean_and_to_max_max aggregator_equals_oracle mixed_aosm_equals_oracle"),
    ("reduce.py", "(attention * x).sum(dim)", "(attention.detach() * x).sum(dim)", "aggregator_passes_gradcheck mixed_aosm_passes_gradcheck grain_passes_gradcheck_on_features_and_bilinear scorer_passes_gradcheck_on_features_and_parameters test_logits_loss_and_gradients_are_the_original_s"),
    ("reduce.py", "@ mixing.to(x.dtype)", "@ mixing.mT.to(x.dtype)", "mixed_aosm_equals_oracle aosm_mixed_on_one_side_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("reduce.py", "temperature * torch.logsumexp(", "torch.logsumexp(", "logsumexp_exceeds_maximum_by_at_most_its_entropy a_single_token_pair_is_its_own_score constant_similarities_return_themselves"),
    ("reduce.py", "return x.to(torch.promote_types(x.dtype, torch.float32))", "return x", "reduction_widens_half_precision half_similarities_score_in_fp32"),
    ("aggregators.py", "super().__init__(Reduction(\"mean\"), Reduction(\"max\"), direction)", "super().__init__(Reduction(\"max\"), Reduction(\"mean\"), direction)", "aggregator_equals_oracle"),
    ("aggregators/two_level.py", "super().__init__(Reduction(\"logsumexp\", temperature), Reduction(", "super().__init__(Reduction(\"mean\"), Reduction(", "order_free_aggregators_have_one_value_in_every_direction aggregator_equals_oracle"),
    ("aggregators.py", "by_candidate = self.inner(sim, q_mask, 2)", "by_candidate = self.outer(sim, q_mask, 2)", "the_candidate_direction_is_the_query_direction_seen_from_the_other_side aggregator_equals_oracle"),
    ("aggregators/base.py", "None if q_mask is None else q_mask[..., 0]", "None", "appended_padding_changes_nothing aggregator_equals_oracle"),
    ("aggregators.py", "by_query = self.inner(sim, c_mask, 3)", "by_query = self.inner(sim * torch.linspace(0.5, 1, sim.shape[3]).to(sim), c_mask, 3)", "token_order_changes_nothing aggregator_equals_oracle"),
    ("aggregators/base.py", "    return sim\n\n\ndef zero_empty", "    return sim - sim.mean()\n\n\ndef zero_empty", "scores_of_any_sub_batch_are_the_batch_s_own a_pair_s_score_does_not_depend_on_its_batch a_bad_item_spoils_its_own_scores_and_no_others blocks_of_any_size_give_the_whole_matrix"),
    ("aggregators/base.py", "sim = torch.where(candidate_mask[None, :, None, :], sim, 0.0)", "pass", "masked_similarities_reach_neither_score_nor_gradient mixed_aosm_reads_nothing_behind_a_mask"),
    ("aggregators/base.py", "scores = torch.where(query_mask.any(1)[:, None], scores, 0.0)", "scores = torch.where(query_mask.any(1)[:, None], scores, torch.nan)", "an_item_without_a_real_token_scores_zero_with_zero_gradient an_empty_item_scores_zero_and_moves_nothing empty_items_leave_the_other_grains_their_say"),
    ("aggregators.py", "scores.append(attend(tokens, outer[0], 2, t, outer[1][1]))", "scores.append(attend(tokens, outer[0], 2, t, outer[1][0]))", "mixed_aosm_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("aggregators/attention.py", "w[:length, :length]", "w[-length:, -length:]", "mixed_aosm_equals_oracle aosm_mixed_on_one_side_equals_oracle"),
    ("aggregators/attention.py", "torch.eye(checks.count(name, size))", "torch.ones(checks.count(name, size), size)", "identity_mixing_is_no_mixing"),
    ("grains.py", "unit @ self.bilinear.to(", "unit @ self.bilinear.mT.to(", "preset_equals_oracle grain_with_any_aggregator_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("grains.py", "unit @ self.bilinear.to(", "unit.detach() @ self.bilinear.to(", "grain_passes_gradcheck_on_features_and_bilinear scorer_passes_gradcheck_on_features_and_parameters"),
    ("grains.py", "nn.Parameter(torch.eye(size))", "nn.Parameter(torch.ones(size, size))", "identity_bilinear_is_no_bilinear"),
    ("kernels/table.py", "with without_autocast(q):", "with torch.enable_grad():", "half_features_score_in_fp32_and_autocast_changes_nothing scorer_widens_half_features_and_ignores_autocast"),
    ("kernels/table.py", "dtype = torch.promote_types(q.dtype, c.dtype)", "dtype = q.dtype", "sides_of_two_dtypes_score_in_the_wider"),
    ("kernels/table.py", "\"c n d -> (c n) d\"", "\"c n d -> (n c) d\"", "similarity_is_the_cosine_of_every_token_pair_and_zero_at_pads preset_equals_oracle"),
    ("grains.py", "return zero_empty(scores, q.mask, c.mask)", "return scores", "an_empty_item_scores_zero_and_moves_nothing test_a_registered_aggregator_of_the_user_s_own_works_like_the_others"),
    ("grains.py", "[:, :, 0, 0]", "[:, :, 0, 0].abs()", "grain_of_vectors_is_their_cosine"),
    ("grains.py", "build_aggregator(aggregator) if isinstance", "AOSM() if isinstance", "an_aggregator_by_name_is_the_aggregator"),
    ("grains.py", "return Grain(\"word\", \"video\", ", "return Grain(\"sentence\", \"video\", ", "preset_equals_oracle mean_is_the_mean_of_the_scores_by_grain"),
    ("scorer.py", "[1 / len(grains)] * len(grains)", "[1 / (len(grains) + 1)] * len(grains)", "mean_is_the_mean_of_the_scores_by_grain four_grains_equal_oracle"),
    ("scorer.py", "checks.weights(weights, len(grains))", "torch.tensor(checks.weights(weights, len(grains))).tolist()", "fixed_weights_equal_oracle"),
    ("scorer.py", "checks.weights(weights, len(grains))", "checks.weights(weights, len(grains))[::-1]", "fixed_weights_equal_oracle"),
    ("scorer.py", "self.weight_logits.softmax(0)", "self.weight_logits.softmax(0).detach()", "learned_weights_start_at_the_mean_and_learn scorer_passes_gradcheck_on_features_and_parameters"),
    ("scorer.py", "if self.strict:", "if not self.strict:", "strict_scores_good_features_alike test_bad_input_is_one_error_that_says_what_was_expected_and_what_came"),
    ("scoring.py", "torch.arange(columns.start, columns.stop", "torch.arange(0, columns.stop - columns.start", "top_k_is_the_matrix_s_own"),
    ("scoring.py", "scores, indices = torch.cat([best[0], scores], 1), torch.cat([best[1], indices], 1)", "scores, indices = torch.cat([scores, best[0]], 1), torch.cat([indices, best[1]], 1)", "top_k_is_the_matrix_s_own"),
    ("scoring.py", "out[rows, columns] = scores", "out[rows, columns] = scores.float().to(scores)", "blocks_of_any_size_give_the_whole_matrix"),
    ("scoring.py", "@torch.no_grad()\ndef score_matrix", "def score_matrix", "scoring_keeps_no_graph_and_reports_every_pair"),
    ("scoring.py", "done += scores.numel()", "done += len(scores)", "scoring_keeps_no_graph_and_reports_every_pair"),
    ("losses/infonce.py", "self.partial(scores.T, positives.T)", "self.partial(scores, positives)", "info_nce_on_the_diagonal_equals_oracle info_nce_with_ids_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways loss_is_blind_to_sides_and_to_a_common_shift"),
    ("losses/infonce.py", "loss / 2 if", "loss / 3 if", "info_nce_on_the_diagonal_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways test_logits_loss_and_gradients_are_the_original_s"),
    ("losses/infonce.py", "/ positives_number.sum(0)", "/ 1", "info_nce_with_ids_equals_oracle"),
    ("losses/infonce.py", "queries[:, None] == candidates", "queries[:, None] >= candidates", "ids_are_names_and_nothing_else info_nce_with_ids_equals_oracle"),
    ("losses/infonce.py", "torch.where(positives, z, 0.0)", "torch.where(positives, z * torch.arange(1, 1 + z.shape[1]).to(z), 0.0)", "the_order_of_pairs_changes_no_loss_and_permutes_gradients"),
    ("losses/infonce.py", ".exp().to(scores.dtype) * scores", ".exp().to(scores.dtype) * scores * scores.abs()", "loss_is_blind_to_sides_and_to_a_common_shift info_nce_on_the_diagonal_equals_oracle"),
    ("losses/infonce.py", "self.logit_scale.exp()", "self.logit_scale.exp().detach()", "info_nce_passes_gradcheck_on_scores_and_scale logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("losses/infonce.py", "self.logit_scale.clamp_(max=self.max_logit_scale)", "pass", "logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("losses/infonce.py", "if self.training and ", "if ", "logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("losses/infonce.py", "scores = scores.to(torch.promote_types(scores.dtype, torch.float32))", "pass", "half_scores_lose_in_fp32_and_autocast_changes_nothing"),
    ("losses/infonce.py", "torch.lerp(positive, mean, self.label_smoothing)", "positive", "info_nce_on_the_diagonal_equals_oracle info_nce_with_ids_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways"),
    ("losses/retrieval.py", "self.criterion(self.scorer(text, video), ids)", "self.criterion(self.scorer(text, video))", "retrieval_loss_is_the_criterion_of_the_scores"),
    ("losses/infonce.py", "shift = highest - highest.amax(0)", "shift = highest * 0", "test_a_memory_of_past_batches_adds_to_rows_and_columns"),
    ("losses/retrieval.py", "torch.full((len(queue),), -1)", "torch.full((len(queue),), 0)", "test_a_memory_of_past_batches_adds_to_rows_and_columns"),
    ("losses/queue.py", "self.features[kept]", "self.features[:len(self) - kept.start]", "test_the_oldest_leave_first"),
    ("losses/cached.py", "random.restore()", "pass", "test_loss_gradients_and_random_state_are_those_of_the_plain_loss test_dropout_differs_from_chunk_to_chunk"),
    ("losses/cached.py", "now.restore()", "pass", "test_loss_gradients_and_random_state_are_those_of_the_plain_loss"),
    ("metrics.py", "(scores > best).sum(1)", "(scores >= best).sum(1)", "ranks_equal_brute_force diagonal_metrics_equal_brute_force perfect_and_indifferent_scores_have_the_metrics_of_definition"),
    ("metrics.py", "(scores > best).sum(1)", "(scores > best + 0.5).sum(1)", "ranks_follow_items_and_depend_on_order_alone ranks_equal_brute_force"),
    ("metrics.py", "\"mean\": 0.5", "\"mean\": 0.0", "tie_rules_bracket_the_mean_and_leave_the_scores_alone ranks_equal_brute_force"),
    ("metrics.py", "((scores == best) & ~positives)", "(scores == best)", "ranks_equal_brute_force multi_caption_metrics_equal_brute_force protocols_agree_on_one_caption_a_video"),
    ("metrics.py", "scores, \"amax\")", "scores, \"sum\")", "multi_caption_metrics_equal_brute_force group_max_agrees_at_one_and_is_easier_beyond"),
    ("metrics.py", "positives[i : i + _ROWS]", "positives[:_ROWS]", "ranks_equal_brute_force"),
    ("metrics.py", "ranks(scores.T, ties=ties)", "ranks(scores, ties=ties)", "diagonal_metrics_equal_brute_force protocols_agree_on_one_caption_a_video"),
    ("metrics.py", "(ordered[(n - 1) // 2] + ordered[n // 2]) / 2", "ordered[n // 2]", "diagonal_metrics_equal_brute_force"),
]  # fmt: skip


def tests_by_name() -> dict[str, str]:
    """Every test function of the suite and its file."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return {name: path.name for path in files for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)}


def failures(folder: Path, names: list[str]) -> tuple[set[str], str]:
    """Which of these tests fail in a copy of the project, and what pytest printed."""
    files = tests_by_name()
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-m", "not cuda", "-p", "no:cacheprovider"]
    command += [f"tests/{files[name]}::{name}" for name in names]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutation", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return set(re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+)", done.stdout, re.M)), done.stdout + done.stderr


def project(folder: Path) -> Path:
    """A copy of the package and its tests."""
    for part in ("multigrain", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def killed(mutation: tuple[str, str, str, str]) -> tuple[bool, str]:
    file, snippet, replacement, expected = mutation
    names = [name if name.startswith("test_") else PREFIX + name for name in expected.split()]
    with tempfile.TemporaryDirectory() as folder:
        path = project(Path(folder)) / "multigrain" / file
        source = path.read_text()
        if source.count(snippet) != 1:
            return False, f"the snippet occurs {source.count(snippet)} times: {snippet!r}"
        path.write_text(source.replace(snippet, replacement))
        failed, _ = failures(Path(folder), names)
    survivors = [name for name in names if name not in failed]
    return not survivors, "not noticed by " + ", ".join(survivors) if survivors else ""


def main(words: list[str]) -> int:
    rows = [m for m in MUTATIONS if not words or any(word in m[0] or word in m[3] for word in words)]
    named = {PREFIX + name for m in MUTATIONS for name in m[3].split()}
    unnamed = sorted(name for name in tests_by_name() if name.startswith(PREFIX) and name not in named)
    start, bad = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        failed, output = failures(project(Path(folder)), sorted(tests_by_name().keys() & named))
        if failed or "passed" not in output:
            print(f"{output}\nthe named tests must pass before anything is broken")
            return 2
    with ThreadPoolExecutor(JOBS) as pool:
        for (file, snippet, replacement, _), (dead, note) in zip(rows, pool.map(killed, rows), strict=True):
            bad += not dead
            print(
                f"{'killed  ' if dead else 'SURVIVED'} {file}: {snippet.strip()!r} -> {replacement.strip()!r} {note}",
                flush=True,
            )
    print(f"{len(rows) - bad} of {len(rows)} killed in {time.perf_counter() - start:.0f} s")
    if unnamed:
        print("properties that no row breaks: " + ", ".join(unnamed))
    return int(bool(bad or unnamed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
