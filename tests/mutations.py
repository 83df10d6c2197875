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
    ("tokens/tokens.py", "x = torch.where(rearrange(self.mask, \"b l -> b l 1\"), x, 0.0)", "pass", "poison_behind_a_mask_reaches_no_normalized_token_and_no_gradient poisoned_padding_changes_neither_scores_nor_gradients poisoned_padding_changes_nothing_in_the_whole_scorer similarity_is_the_cosine_of_every_token_pair_and_zero_at_pads poison_behind_a_mask_reaches_no_pooled_vector"),
    ("tokens/tokens.py", "return x.to(torch.promote_types(x.dtype, torch.float32))", "return x", "half_tokens_are_widened_before_they_are_normalized half_features_score_in_fp32_and_autocast_changes_nothing scorer_widens_half_features_and_ignores_autocast"),
    ("tokens/tokens.py", "x / norm.clamp_min(EPS))", "x / (norm + 1e-3))", "normalized_tokens_equal_oracle_and_pads_are_zero positive_scaling_of_any_token_changes_nothing"),
    ("tokens/tokens.py", "torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS))", "x / norm", "a_zero_token_stays_zero_with_zero_gradient normalized_tokens_equal_oracle_and_pads_are_zero"),
    ("tokens/tokens.py", "torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS))", "torch.where(norm > EPS, x / norm.clamp_min(EPS), 0.0)", "a_bad_real_token_makes_nan_of_its_item_s_scores_alone a_bad_item_spoils_its_own_scores_and_no_others"),
    ("tokens/features.py", "unit = any(part.unit for part in parts)", "unit = all(part.unit for part in parts)", "joining_normalizes_the_parts_that_are_not_unit"),
    ("tokens/tokens.py", "else self.mask[rows]", "else self.mask[rows].flip(0)", "slices_joined_are_the_whole indexing_takes_the_same_items_of_every_grain"),
    ("tokens/features.py", "_pad(part.real_mask, length)", "(_pad(part.real_mask, length) | True)", "joining_pads_to_the_longest_and_masks_the_pads slices_joined_are_the_whole"),
    ("tokens/features.py", "_own(t.mask)", "None", "saving_and_loading_gives_the_same_features"),
    ("tokens/tokens.py", "if self.unit:", "if False:", "unit_tokens_are_compared_as_they_are_but_for_their_pads"),
    ("tokens/tokens.py", "(EPS)), self.mask, unit=True)", "(EPS)), self.mask)", "normalizing_twice_is_normalizing_once"),
    ("tokens/tokens.py", "self.features.to(device=device, dtype=dtype)", "self.features.to(device=device)", "moving_keeps_masks_and_changes_dtype_alone"),
    ("reduce.py", "return x.clamp_min(torch.finfo(x.dtype).min)", "return x", "minus_infinity_leaves_out_a_pair_of_loss_and_gradients"),
    ("checks.py", 'f"{text[:97]}..."', "text", "hostile_values_give_finite_results_or_one_line"),
    ("evaluation/scores.py", "total.add_(matrix, alpha=float(weight))", "total.add_(matrix)", "figures_are_those_of_whole_matrices"),
    ("reduce.py", "count = mask.sum(dim).clamp_min(1)", "count = mask.sum(dim) + 1", "reduction_equals_oracle_over_real_entries no_mask_means_all_real aggregator_equals_oracle"),
    ("reduce.py", "torch.where(mask, x, torch.finfo(x.dtype).min)", "torch.where(mask, x, 0.0)", "reduction_equals_oracle_over_real_entries aggregator_equals_oracle appended_padding_changes_nothing grain_with_any_aggregator_equals_oracle preset_equals_oracle four_grains_equal_oracle"),
    ("reduce.py", "_lowest(x, mask).amax(dim)", "_lowest(x, mask).max(dim).values", "tied_maxima_share_the_gradient_evenly"),
    ("reduce.py", "_lowest(x, mask).amax(dim)", "_lowest(x, None).amax(dim)", "masked_entries_reach_neither_result_nor_gradient reduction_equals_oracle_over_real_entries"),
    ("reduce.py", "total(attention * _zeroed(x, mask), None, dim)", "total(attention * x, None, dim)", "masked_entries_reach_neither_result_nor_gradient"),
    ("reduce.py", "attention = softmax(x / temperature, mask, dim)", "attention = softmax(-x / temperature, mask, dim)", "one_level_of_attention_lies_between_mean_and_maximum one_level_of_attention_does_not_rise_with_temperature aggregator_equals_oracle aosm_of_sentence_and_frames_is_hitchhiker_s_scores_mode"),
    ("reduce.py", "attention = softmax(x / temperature, mask, dim)", "attention = softmax(x / 0.01, mask, dim)", "aosm_tends_to_mean_mean_and_to_max_max aggregator_equals_oracle mixed_aosm_equals_oracle"),
    ("reduce.py", "total(attention * _zeroed(x, mask), None, dim)", "total(attention.detach() * _zeroed(x, mask), None, dim)", "aggregator_passes_gradcheck mixed_aosm_passes_gradcheck grain_passes_gradcheck_on_features_and_bilinear scorer_passes_gradcheck_on_features_and_parameters test_logits_loss_and_gradients_are_the_original_s"),
    ("reduce.py", "@ mixing.to(attention.dtype)", "@ mixing.mT.to(attention.dtype)", "mixed_aosm_equals_oracle aosm_mixed_on_one_side_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("reduce.py", "temperature * torch.logsumexp(", "torch.logsumexp(", "logsumexp_exceeds_maximum_by_at_most_its_entropy a_single_token_pair_is_its_own_score constant_similarities_return_themselves log_sum_exp_lies_above_the_maximum_by_at_most_its_entropy"),
    ("reduce.py", "return x.to(torch.promote_types(x.dtype, torch.float32))", "return x", "reduction_widens_half_precision half_similarities_score_in_fp32"),
    ("aggregators/two_level.py", "super().__init__(Reduction(\"mean\"), Reduction(\"max\"), direction)", "super().__init__(Reduction(\"max\"), Reduction(\"mean\"), direction)", "aggregator_equals_oracle"),
    ("aggregators/two_level.py", "super().__init__(Reduction(\"logsumexp\", temperature), Reduction(", "super().__init__(Reduction(\"mean\"), Reduction(", "order_free_aggregators_have_one_value_in_every_direction aggregator_equals_oracle"),
    ("aggregators/base.py", "inner = Axis(2, \"query\", \"inner\")", "inner = Axis(2, \"query\", \"outer\")", "the_candidate_direction_is_the_query_direction_seen_from_the_other_side aggregator_equals_oracle"),
    ("aggregators/base.py", "self.level(by_query, _axes(query_mask, \"q m -> q 1 m\"), outer)", "self.level(by_query, None, outer)", "appended_padding_changes_nothing aggregator_equals_oracle"),
    ("aggregators/base.py", "by_query = self.level(sim,", "by_query = self.level(sim * torch.linspace(0.5, 1, sim.shape[3]).to(sim),", "token_order_changes_nothing aggregator_equals_oracle"),
    ("aggregators/base.py", "    return sim\n\n\ndef zero_empty", "    return sim - sim.mean()\n\n\ndef zero_empty", "scores_of_any_sub_batch_are_the_batch_s_own a_pair_s_score_does_not_depend_on_its_batch a_bad_item_spoils_its_own_scores_and_no_others blocks_of_any_size_give_the_whole_matrix"),
    ("aggregators/base.py", "sim = torch.where(rearrange(candidate_mask, \"c n -> 1 c 1 n\"), sim, 0.0)", "pass", "masked_similarities_reach_neither_score_nor_gradient mixed_aosm_reads_nothing_behind_a_mask"),
    ("aggregators/base.py", "scores = torch.where(reduce(query_mask, \"q m -> q 1\", \"any\"), scores, 0.0)", "scores = torch.where(reduce(query_mask, \"q m -> q 1\", \"any\"), scores, torch.nan)", "an_item_without_a_real_token_scores_zero_with_zero_gradient an_empty_item_scores_zero_and_moves_nothing empty_items_leave_the_other_grains_their_say"),
    ("aggregators/attention.py", "self.inner.temperature, self.matrix(axis.side, axis.depth, ", "self.inner.temperature, self.matrix(axis.side, \"inner\", ", "mixed_aosm_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("aggregators/attention.py", "self.temperature, self.matrix(axis.side, axis.depth, ", "self.temperature, self.matrix(axis.side, \"inner\", ", "mixed_isa_equals_oracle"),
    ("reduce.py", "softmax(first / temperature, mask, dim)", "softmax(first, mask, dim)", "aggregator_equals_oracle mixed_isa_equals_oracle"),
    ("reduce.py", "softmax(y / length / temperature, mask, dim)", "softmax(y / temperature, mask, dim)", "aggregator_equals_oracle"),
    ("reduce.py", "torch.where(largest > 0, largest, 1.0)", "largest", "extreme_similarities_have_finite_scores_and_gradients"),
    ("reduce.py", "best & (rank <= mask.sum(dim, keepdim=True))", "best", "top_k_of_all_is_mean_max_and_of_one_is_max_max"),
    ("aggregators/top_k.py", "torch.ceil(self.share", "torch.floor(self.share", "aggregator_equals_oracle"),
    ("aggregators/token_weighted.py", "w = torch.where(tokens.mask, w, 0.0)", "pass", "token_weights_equal_oracle"),
    ("aggregators/base.py", "Axis(2, \"query\", \"outer\", _axes(query_weights, \"q m -> q 1 m\"))", "Axis(2, \"query\", \"outer\", _axes(candidate_weights, \"c n -> 1 c n\"))", "token_weighted_grain_equals_oracle"),
    ("aggregators/token_weighted.py", "tokens.filled())))", "tokens.normalized().features)))", "token_weighted_grain_equals_oracle"),
    ("heads/pool.py", "pooled = torch.where(real, pooled, 0.0)", "pass", "test_a_head_adds_one_grain"),
    ("reduce.py", "best = rank <= count", "best = rank <= 2", "fewer_tokens_score_higher"),
    ("reduce.py", ".clamp_min(1.0)", ".clamp_min(1.0) * largest", "normalized_softmax_weighs_alike_at_any_scale"),
    ("aggregators/token_weighted.py", "w / torch.where(size > 0, size, 1.0)", "w", "uniform_weights_are_token_interaction token_weighted_grain_equals_oracle"),
    ("grains/pooled.py", "return zero_empty(scores, q.mask, c.mask)", "return scores", "an_item_without_a_real_frame_scores_zero_and_moves_nothing"),
    ("grains/pooled.py", "rearrange(mask, \"c n -> 1 c 1 n\")", "rearrange(mask | True, \"c n -> 1 c 1 n\")", "neither_padding_nor_order_changes_a_pooled_vector query_pooling_equals_oracle"),
    ("grains/pooled.py", "rearrange(unit_vectors(q), ", "rearrange(q, ", "of_one_frame_softmax_pool_is_its_cosine"),
    ("grains/pooled.py", "pooled = self.pooler(q, c, nonempty(candidate.mask))", "pooled = self.pooler(q, c, nonempty(candidate.mask))\n            pooled = pooled - pooled.mean()", "pooled_scores_of_a_sub_batch_are_the_batch_s_own"),
    ("heads/pool.py", "return mean(tokens, None if mask is None else rearrange(mask, \"b l -> b l 1\"), 1)", "return tokens.mean(1)", "pooling_equals_oracle"),
    ("grains/pooled.py", "sim / self.temperature", "sim", "query_pooling_equals_oracle softmax_pool_tends_to_the_mean_and_to_the_best"),
    ("grains/pooled.py", "self.key, self.value)", "self.value, self.key)", "query_pooling_equals_oracle"),
    ("grains/pooled.py", "/ q.shape[-1] ** 0.5", "", "query_pooling_equals_oracle"),
    ("aggregators/attention.py", "mixing[:length, :length]", "mixing[-length:, -length:]", "mixed_aosm_equals_oracle aosm_mixed_on_one_side_equals_oracle"),
    ("aggregators/attention.py", "torch.eye(checks.count(f\"{side}_tokens\", size))", "torch.ones(size, size)", "identity_mixing_is_no_mixing isa_of_identical_matrices_is_isa"),
    ("grains/grain.py", "unit @ self.bilinear.to(", "unit @ self.bilinear.mT.to(", "preset_equals_oracle grain_with_any_aggregator_equals_oracle four_grains_equal_oracle test_logits_loss_and_gradients_are_the_original_s"),
    ("grains/grain.py", "unit @ self.bilinear.to(", "unit.detach() @ self.bilinear.to(", "grain_passes_gradcheck_on_features_and_bilinear scorer_passes_gradcheck_on_features_and_parameters"),
    ("grains/grain.py", "nn.Parameter(torch.eye(size))", "nn.Parameter(torch.ones(size, size))", "identity_bilinear_is_no_bilinear"),
    ("similarity.py", "with without_autocast(q):", "with torch.enable_grad():", "half_features_score_in_fp32_and_autocast_changes_nothing scorer_widens_half_features_and_ignores_autocast"),
    ("similarity.py", "dtype = torch.promote_types(q.dtype, c.dtype)", "dtype = q.dtype", "sides_of_two_dtypes_score_in_the_wider"),
    ("similarity.py", "\"c n d -> d (c n)\"", "\"c n d -> d (n c)\"", "similarity_is_the_cosine_of_every_token_pair_and_zero_at_pads preset_equals_oracle"),
    ("grains/grain.py", "return zero_empty(scores, q.mask, c.mask)", "return scores", "an_empty_item_scores_zero_and_moves_nothing test_a_registered_aggregator_of_the_user_s_own_works_like_the_others"),
    ("grains/grain.py", "rearrange(similarity(q, c), \"q c 1 1 -> q c\")", "rearrange(similarity(q, c), \"q c 1 1 -> q c\").abs()", "grain_of_vectors_is_their_cosine"),
    ("aggregators/base.py", "return build_aggregator(value)", 'return build_aggregator("aosm")', "an_aggregator_by_name_is_the_aggregator"),
    ("grains/grain.py", "return Grain(\"word\", \"video\", ", "return Grain(\"sentence\", \"video\", ", "preset_equals_oracle mean_is_the_mean_of_the_scores_by_grain"),
    ("scorer.py", "[1 / len(grains)] * len(grains)", "[1 / (len(grains) + 1)] * len(grains)", "mean_is_the_mean_of_the_scores_by_grain four_grains_equal_oracle"),
    ("scorer.py", "_checked_weights(weights, len(grains))", "torch.tensor(_checked_weights(weights, len(grains))).tolist()", "fixed_weights_equal_oracle"),
    ("scorer.py", "_checked_weights(weights, len(grains))", "_checked_weights(weights, len(grains))[::-1]", "fixed_weights_equal_oracle"),
    ("scorer.py", "self.weight_logits.softmax(0)", "self.weight_logits.softmax(0).detach()", "learned_weights_start_at_the_mean_and_learn scorer_passes_gradcheck_on_features_and_parameters"),
    ("scorer.py", "if self.strict:", "if not self.strict:", "strict_scores_good_features_alike test_bad_input_is_one_error_that_says_what_was_expected_and_what_came"),
    ("scoring.py", "torch.arange(count + columns.start, count + columns.stop", "torch.arange(count, count + columns.stop - columns.start", "top_k_is_the_matrix_s_own"),
    ("scoring.py", "scores, indices = torch.cat([best[0], scores], 1), torch.cat([best[1], indices], 1)", "scores, indices = torch.cat([scores, best[0]], 1), torch.cat([indices, best[1]], 1)", "top_k_is_the_matrix_s_own"),
    ("scoring.py", "count += len(part)", "count += 1", "top_k_of_parts_is_that_of_the_whole"),
    ("scoring.py", "out[rows, columns] = scores", "out[rows, columns] = scores.float().to(scores)", "blocks_of_any_size_give_the_whole_matrix"),
    ("scoring.py", "@torch.no_grad()\ndef score_matrix", "def score_matrix", "scoring_keeps_no_graph_and_reports_every_pair"),
    ("scoring.py", "done += scores.numel()", "done += len(scores)", "scoring_keeps_no_graph_and_reports_every_pair"),
    ("losses/criterion.py", 'self._rows(*(rearrange(x, "q c -> c q") for x in (scores, of_columns)))', "self._rows(scores, of_columns)", "directions_are_each_other_s_transpose_and_add_up info_nce_on_the_diagonal_equals_oracle info_nce_with_ids_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways loss_is_blind_to_sides_and_to_a_common_shift"),
    ("losses/criterion.py", "(0.5, 0.5) if", "(0.3, 0.3) if", "directions_are_each_other_s_transpose_and_add_up info_nce_on_the_diagonal_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways test_logits_loss_and_gradients_are_the_original_s"),
    ("losses/infonce.py", "positives_number * shift, positives_number)", "positives_number * shift, torch.ones_like(shift) / len(shift))", "info_nce_with_ids_equals_oracle"),
    ("losses/criterion.py", 'rearrange(queries, "q -> q 1") == candidates', 'rearrange(queries, "q -> q 1") >= candidates', "ids_are_names_and_nothing_else info_nce_with_ids_equals_oracle"),
    ("losses/infonce.py", "positives * z, 0.0)", "positives * z * torch.arange(1, 1 + z.shape[1]).to(z), 0.0)", "the_order_of_pairs_changes_no_criterion_and_permutes_gradients"),
    ("losses/infonce.py", ".exp().to(x.dtype) * x)", ".exp().to(x.dtype) * x * x.abs())", "loss_is_blind_to_sides_and_to_a_common_shift info_nce_on_the_diagonal_equals_oracle"),
    ("losses/infonce.py", "bounded(logit_scale.exp()", "bounded(logit_scale.exp().detach()", "every_criterion_passes_gradcheck_on_scores_and_parameters logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("losses/infonce.py", "self.logit_scale.clamp_(self.min_logit_scale, self.max_logit_scale)", "pass", "logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("losses/infonce.py", "if self.training and ", "if ", "logit_scale_is_clamped_in_training_and_keeps_its_gradient"),
    ("reduce.py", "x = widen(x)\n    return x.clamp_min(", "return x.clamp_min(", "every_criterion_widens_half_scores_and_ignores_autocast"),
    ("losses/infonce.py", "torch.lerp(positive, mean, self.label_smoothing)", "positive", "info_nce_on_the_diagonal_equals_oracle info_nce_with_ids_equals_oracle info_nce_is_torch_s_cross_entropy_both_ways"),
    ("losses/retrieval.py", "self.criterion(self.scorer(text, video), ids)", "self.criterion(self.scorer(text, video))", "retrieval_loss_is_the_criterion_of_the_scores"),
    ("losses/infonce.py", 'shift = highest - reduce(highest, "parts q -> q", "max")', "shift = highest * 0", "test_a_memory_of_past_batches_adds_to_rows_and_columns"),
    ("losses/candidates.py", "torch.full((len(queue),), -1)", "torch.full((len(queue),), 0)", "test_a_memory_of_past_batches_adds_to_rows_and_columns"),
    ("losses/infonce.py", "of_rows.detach(), of_columns.detach()", "of_rows, of_columns", "targets_are_normalised_in_rows_and_in_columns"),
    ("losses/infonce.py", "of_rows, of_columns = both", "of_columns, of_rows = both", "targets_are_normalised_in_rows_and_in_columns"),
    ("losses/infonce.py", "return bounded(logit_scale.exp().to(x.dtype) * x)", "return bounded(1.01 * logit_scale.exp().to(x.dtype) * x)", "info_nce_is_that_of_open_clip_and_pytorch_metric_learning"),
    ("losses/infonce.py", "of_all + number * shift, number)", "of_positives + number * shift, number)", "align_is_two_smoothed_cross_entropies_summed"),
    ("losses/infonce.py", "soft, alpha)", "soft, alpha**2)", "test_momentum_distillation_by_hand"),
    ("losses/sigmoid.py", "torch.where(positives, -logits, logits)", "torch.where(positives, logits, -logits)", "sigmoid_equals_oracle sigmoid_is_that_of_open_clip"),
    ("losses/sigmoid.py", "F.softplus(torch.where(positives, -logits, logits))", "torch.where(positives, -logits, logits).exp().log1p()", "gradients_stay_finite_at_extreme_scores_and_scales"),
    ("losses/ranking.py", "positives.to(torch.uint8).argsort(1, descending=True)", "positives.to(torch.uint8).argsort(1)", "margin_ranking_equals_oracle"),
    ("losses/ranking.py", "scores >= last", "scores > last", "a_pool_of_one_is_the_hardest_negative margin_ranking_equals_oracle"),
    ("losses/base.py", "[weight * x for weight, x in", "[x for _, x in", "a_sum_is_the_sum_of_its_named_terms"),
    ("losses/retrieval.py", "(ranks * weight * value)", "(ranks * value)", "a_sum_of_criteria_is_a_sum_of_losses_of_the_same_scorer"),
    ("losses/batch.py", "torch.where(mask, values, 0.0)", "values", "padding_changes_no_loss_of_features_and_no_gradient token_nce_equals_oracle"),
    ("losses/token.py", "chosen = weights > 0", "chosen = weights >= 0", "losses_of_features_have_finite_gradients_in_every_dtype token_nce_equals_oracle"),
    ("losses/token.py", "scores + w.log() /", "scores + 0 * w /", "token_nce_equals_oracle"),
    ("losses/decorrelation.py", 'sim = torch.where(rearrange(others.mask, "b n -> b 1 n"), sim, torch.finfo(sim.dtype).min)', "pass", "decorrelation_equals_loops_over_channels"),
    ("losses/decorrelation.py", "name) if found is None else found", "name)", "decorrelation_by_learned_weights_is_that_by_the_same_weights_given"),
    ("losses/decorrelation.py", "q_weights) + _correlation(", "q_weights) + 0.9 * _correlation(", "decorrelation_equals_loops_over_channels"),
    ("losses/decorrelation.py", "(w * z_partner) /", "(w * torch.arange(len(w)).to(w)[:, None] * z_partner) /", "the_order_of_pairs_and_tokens_changes_no_loss_of_features"),
    ("losses/distillation.py", "return 1 - reduce(_centred", "return 1.1 - reduce(_centred", "a_student_like_its_teacher_has_nothing_to_learn distillation_equals_its_formula"),
    ("losses/queue.py", "self.features[kept]", "self.features[:len(self) - kept.start]", "test_the_oldest_leave_first"),
    ("losses/cached.py", "random.restore()", "pass", "test_loss_gradients_and_random_state_are_those_of_the_plain_loss test_dropout_differs_from_chunk_to_chunk"),
    ("losses/cached.py", "now.restore()", "pass", "test_loss_gradients_and_random_state_are_those_of_the_plain_loss"),
    ("metrics.py", "(scores > best, scores == best))\n        equal = equal - 1", "(scores >= best, scores == best))\n        equal = equal - 1", "ranks_equal_brute_force diagonal_metrics_equal_brute_force perfect_and_indifferent_scores_have_the_metrics_of_definition"),
    ("metrics.py", "(scores > best, scores == best))\n        equal = equal - 1", "(scores > best + 0.5, scores == best))\n        equal = equal - 1", "ranks_follow_items_and_depend_on_order_alone ranks_equal_brute_force"),
    ("metrics.py", "\"mean\": 0.5", "\"mean\": 0.0", "tie_rules_bracket_the_mean_and_leave_the_scores_alone ranks_equal_brute_force"),
    ("metrics.py", "(x & ~positives, \"q c -> q\", \"sum\") for x in (scores > best, scores == best)", "(x, \"q c -> q\", \"sum\") for x in ((scores > best) & ~positives, scores == best)", "ranks_equal_brute_force"),
    ("metrics.py", "(x == best) & others]", "x == best]", "multi_caption_metrics_equal_brute_force"),
    ("metrics.py", "targets.unique(return_inverse=True)", "targets.flip(0).unique(return_inverse=True)", "protocols_agree_on_one_caption_a_video"),
    ("metrics.py", "scores, \"amax\")", "scores, \"sum\")", "multi_caption_metrics_equal_brute_force group_max_agrees_at_one_and_is_easier_beyond"),
    ("metrics.py", "positives[rows], share", "positives[: rows.stop - rows.start], share", "ranks_equal_brute_force"),
    ("metrics.py", "ranks_of_videos(by_video, targets, protocol, ties)", "ranks(by_video, targets, ties)", "diagonal_metrics_equal_brute_force"),
    ("metrics.py", "(ordered[(n - 1) // 2] + ordered[n // 2]) / 2", "ordered[n // 2]", "diagonal_metrics_equal_brute_force"),
    ("hubness.py", ".softmax(0)", ".softmax(1)", "dual_and_inverted_softmax_equal_loops one_query_or_a_tiny_beta_leave_the_ranks_to_dual_softmax along_the_wrong_axis_nothing_changes"),
    ("hubness.py", "(beta * (x - reduce(x, \"q c -> 1 c\", \"max\")))", "(beta * x)", "any_beta_is_finite_in_fp32"),
    ("hubness.py", "return x * (beta * (x - reduce(x, \"q c -> 1 c\", \"max\"))).softmax(0)", "return x.mul_((beta * (x - x.amax(0))).softmax(0))", "a_correction_returns_a_new_matrix"),
    ("hubness.py", "return x - _soft_mean(_bank(bank, x), beta, 0)", "return x - _soft_mean(x, beta, 0)", "dual_and_inverted_softmax_equal_loops inverted_softmax_lies_between_mean_and_maximum_of_the_bank"),
    ("hubness.py", "return highest + log_mean / beta", "return 0.9 * highest + log_mean / beta", "a_shift_of_a_candidate_is_what_inverted_softmax_and_sinkhorn_take_away sinkhorn_s_rows_and_columns_are_equally_in_demand"),
    ("hubness.py", "& hubs,", "| hubs,", "the_dynamic_one_changes_rows_led_by_a_hub_and_no_others"),
    ("hubness.py", "x = x - _soft_mean(x, beta, 0)", "x = x - _soft_mean(x, beta / 2, 0)", "one_iteration_of_sinkhorn_ranks_as_inverted_softmax sinkhorn_s_rows_and_columns_are_equally_in_demand"),
    ("hubness.py", "return scores, checks.positive(", "return scores * torch.linspace(0.5, 1, scores.shape[1]).to(scores), checks.positive(", "the_order_of_queries_candidates_and_bank_changes_nothing"),
    ("cross_encoder.py", "torch.cat([query.real_mask, ", "torch.cat([query.real_mask | True, ", "a_score_is_that_of_its_pair_with_its_real_tokens_alone"),
    ("cross_encoder.py", "q, c = query[self.query].normalized(), ", "q, c = Tokens(query[self.query].tokenwise().features), ", "what_is_behind_a_mask_changes_neither_pair_scores_nor_gradients poisoned_padding_changes_no_matching_loss_and_no_gradient"),
    ("cross_encoder.py", "[scale * x.features + side", "[scale * x.features * torch.linspace(0.5, 1, x.length).to(x.features)[:, None] + side", "pair_scores_do_not_depend_on_token_order_batch_or_vector_length"),
    ("cross_encoder.py", "else tokens.mask.split(size)", "else [tokens.mask[: len(x)] for x in features]", "blocks_of_pairs_give_the_scores_logits_and_gradients_of_the_whole"),
    ("cross_encoder.py", "blocks = zip(_split(q, size), ", "blocks = zip(_split(q[torch.arange(len(q)).flip(0)], size), ", "aligned_pairs_are_the_diagonal_of_all"),
    ("cross_encoder.py", "return zero_empty(scores, q.mask, c.mask)", "return scores", "an_empty_item_has_pair_score_zero_and_moves_nothing"),
    ("cross_encoder.py", "return logits[..., 1] - logits[..., 0]", "return logits[..., 1] - logits[..., 0].detach()", "cross_encoder_passes_gradcheck"),
    ("tokens/tokens.py", "torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS))", "x / norm", "pair_gradients_are_finite_at_extremes"),
    ("cross_encoder.py", "self.aggregator(sim, None, nonempty(real))", "self.aggregator(sim)", "segments_are_scored_as_videos_of_their_own padded_segments_change_nothing pooled_segments_bound_each_other_and_one_segment_is_no_segment"),
    ("cross_encoder.py", "\"q (c s) -> q c 1 s\"", "\"q (s c) -> q c 1 s\"", "clipbert_s_lse_loss_is_cross_entropy_of_pooled_logits segments_are_scored_as_videos_of_their_own"),
    ("cross_encoder.py", "below = 1 + F.pad(", "below = F.pad(", "reranked_stay_above_the_rest_which_keeps_its_order"),
    ("cross_encoder.py", "scorer(text[i], video[columns])", "scorer(text[0], video[columns])", "reranking_all_is_scoring_all_pairs reranked_stay_above_the_rest_which_keeps_its_order"),
    ("losses/matching.py", "torch.where(positives, -torch.inf, scores.detach())", "scores.detach()", "negatives_are_no_positives_and_differ the_cascade_keeps_the_best_in_their_order"),
    ("losses/matching.py", "torch.where(positives, -torch.inf, scores.detach())", "torch.where(~positives, -torch.inf, scores.detach())", "negatives_are_no_positives_and_differ the_cascade_s_losses_by_hand"),
    ("losses/matching.py", " / len(losses) - own_odds", " - own_odds", "the_cascade_s_losses_by_hand all_negatives_are_the_contrast_of_all_pairs"),
    ("losses/matching.py", 'positives = rearrange(ids, "b -> b 1") == ids', 'positives = rearrange(ids, "b -> b 1") >= ids', "the_order_of_pairs_changes_no_matching_loss the_cascade_s_losses_by_hand"),
    ("losses/matching.py", "cross_entropy(logits, labels", "cross_entropy(logits.detach(), labels", "matching_passes_gradcheck"),
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
