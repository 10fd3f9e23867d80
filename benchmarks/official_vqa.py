"""The official VQAv2 evaluator's way of computing accuracy, written out plainly: the peer of `rewards.vqa_accuracy`.

Follows GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py (commit a013f00), step for step and with the
same data structures, so that its pace is the official one: every answer is normalised each time it is met, and every
annotator is compared with all others. Left out: the progress bar. Taken from `rewards.vqa_accuracy`: the table of
contractions, which is data.
"""

import re
from typing import Any

from rewards.vqa_accuracy import _COMPLETED as CONTRACTIONS

PUNCTUATION = [";", r"/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-"]
PUNCTUATION += [">", "<", "@", "`", ",", "?", "!"]
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
COMMA = re.compile(r"(\d)(\,)(\d)")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ARTICLES = ["a", "an", "the"]


class OfficialEvaluator:
    """Evaluates predictions by question id, as the official one does.

    Args:
        annotations: question id -> {"answers": [{"answer", "answer_confidence", "answer_id"}], "question_type",
            "answer_type"}. Answers are normalised in place.
        predictions: question id -> answer.
    """

    def __init__(self, annotations: dict[int, dict[str, Any]], predictions: dict[int, str]):
        self.annotations = annotations
        self.predictions = predictions
        self.numbers = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBERS)}
        self.accuracy_of_question: dict[int, float] = {}
        self.accuracies_by_question_type: dict[str, list[float]] = {}
        self.accuracies_by_answer_type: dict[str, list[float]] = {}

    def evaluate(self) -> list[float]:
        """Accuracy of every question, 0 to 1, in order."""
        accuracies = []
        for question, annotation in self.annotations.items():
            for given in annotation["answers"]:
                given["answer"] = given["answer"].replace("\n", " ").replace("\t", " ").strip()
            prediction = self.predictions[question].replace("\n", " ").replace("\t", " ").strip()
            if len({given["answer"] for given in annotation["answers"]}) > 1:
                for given in annotation["answers"]:
                    given["answer"] = self.process_digits_and_articles(self.process_punctuation(given["answer"]))
                prediction = self.process_digits_and_articles(self.process_punctuation(prediction))
            by_annotator = []
            for given in annotation["answers"]:
                others = [other for other in annotation["answers"] if other != given]
                matching = [other for other in others if other["answer"] == prediction]
                by_annotator.append(min(1, float(len(matching)) / 3))
            accuracy = float(sum(by_annotator)) / len(by_annotator)
            accuracies.append(accuracy)
            self.accuracy_of_question[question] = round(100 * accuracy, 2)
            self.accuracies_by_question_type.setdefault(annotation["question_type"], []).append(accuracy)
            self.accuracies_by_answer_type.setdefault(annotation["answer_type"], []).append(accuracy)
        return accuracies

    def process_punctuation(self, text: str) -> str:
        result = text
        for mark in PUNCTUATION:
            if (mark + " " in text or " " + mark in text) or (re.search(COMMA, text) is not None):
                result = result.replace(mark, "")
            else:
                result = result.replace(mark, " ")
        return PERIOD.sub("", result, count=int(re.UNICODE))  # the official slip: a flag as the count, which is 32

    def process_digits_and_articles(self, text: str) -> str:
        words = []
        for word in text.lower().split():
            word = self.numbers.setdefault(word, word)
            if word not in ARTICLES:
                words.append(word)
        for position, word in enumerate(words):
            if word in CONTRACTIONS:
                words[position] = CONTRACTIONS[word]
        return " ".join(words)


def official_input(predictions: list[str], answers: list[list[str]]) -> tuple[dict[int, dict], dict[int, str]]:
    """Fresh arguments of `OfficialEvaluator`, which changes them."""
    annotations = {
        question: {
            "question_type": "what is",
            "answer_type": "other",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(given, start=1)
            ],
        }
        for question, given in enumerate(answers)
    }
    return annotations, dict(enumerate(predictions))
