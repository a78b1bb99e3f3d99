from cosmos_hpc.worker.training.metrics import draw_losses


def test_the_curve_is_drawn_from_what_there_is(tmp_path):
    path = tmp_path / "loss.png"
    draw_losses([], path, {})
    empty = path.read_bytes()
    rows = [{"step": s, "loss": 11 - s} for s in range(5)] + [{"step": 4, "validation_loss": 8}]
    draw_losses(rows, path, {"untrained": 11.07, "unigram": 6.2})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() != empty
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
