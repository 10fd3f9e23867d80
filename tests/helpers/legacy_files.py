"""What files of earlier systems hold: RL data and beams of one query."""

SEED = {  # as the design note of the RL data shows it
    "12": {
        "pointer_candidates": [
            {
                "pointer": [7, 22],
                "gen_method": "beam",
                "beam_rank": 0,
                "beam_score": 2.13,
                "logprob_score": -1.56,
                "temperature": None,
                "vqa_pred_answer": "a book",
                "vqa_correct": 1,
                "vqa_acc_score": 1.0,
            },
            {
                "pointer": [5, 18],
                "gen_method": "sample",
                "beam_rank": None,
                "beam_score": None,
                "logprob_score": -2.03,
                "temperature": 1.0,
                "vqa_pred_answer": "a notebook",
                "vqa_correct": 1,
                "vqa_acc_score": 0.9,
            },
            {
                "pointer": [3, 9],
                "gen_method": "random",
                "beam_rank": None,
                "beam_score": None,
                "logprob_score": None,
                "temperature": None,
                "vqa_pred_answer": "a phone",
                "vqa_correct": 0,
                "vqa_acc_score": 0.0,
            },
        ]
    }
}
POOL = [9, 7, 18, 22, 3, 5]
QUERY = {"query_id": 12, "question_id": 120, "image_id": 3, "question": "what?", "gt_answers_raw": ["a book"]}


def with_positions(form: str) -> dict:
    """The seed's data with a query and a pool, in the global or the local form."""
    candidates = []
    for candidate in SEED["12"]["pointer_candidates"]:
        ids = candidate["pointer"]
        positions = [POOL.index(item) for item in ids]
        pointers = {"pointer": ids, "pointer_pos": positions} if form == "global" else {}
        pointers = pointers or {"pointer": positions, "pointer_global": ids}
        candidates.append({**candidate, **pointers, "vqa_eval_mode": "vqaEval", "eval_failed": False})
    return {"12": {"query": QUERY, "candidate_pool_ids": POOL, "pointer_candidates": candidates}}


BEAMS = {
    "12": {
        "beams": [
            {
                "shots": [{"id": 7, "score": 0.5}, {"id": 22, "score": 0.25}],
                "final_score": 0.25,
                "full_sequence": [22, 7, 12],
            },
            {
                "shots": [{"id": 3, "score": 0.5}, {"id": 7, "score": -0.125}],
                "final_score": -0.125,
                "full_sequence": [7, 3, 12],
            },
        ],
        "few_shot_num": 2,
        "id_list": [[22, 7, 12], [7, 3, 12]],
        "score_list": [0.25, -0.125],
        "shot_scores": [[0.5, 0.25], [0.5, -0.125]],
    }
}
SHORT_BEAMS = {"12": {"id_list": [[22, 7, 12], [7, 3, 12]], "score_list": [0.25, -0.125]}}
