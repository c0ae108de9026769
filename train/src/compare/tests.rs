//! Verdicts, sentences and tables for constructed steps.

use super::*;

fn record(step: u64, loss: f64) -> StepRecord {
    StepRecord {
        step,
        loss,
        total_loss: loss,
        gradient_norm: 2.0,
        learning_rate: 1e-3,
        tokens: 100,
        seconds: 0.5,
        peak_memory: Some(1 << 20),
        layers: Vec::new(),
    }
}

fn run(device: &str, losses: &[f64], failure: Option<&str>) -> DeviceRun {
    let steps = losses
        .iter()
        .zip(1..)
        .map(|(&loss, step)| record(step, loss));
    DeviceRun::new(device, steps.collect(), failure.map(str::to_owned))
}

fn comparison(devices: Vec<DeviceRun>) -> Comparison {
    let mut comparison = Comparison {
        config: "run.toml".into(),
        steps: 4,
        run_steps: 100,
        seed: 1,
        tolerance: 1e-5,
        devices,
        perturbed: None,
    };
    comparison.judge();
    comparison
}

/// The same with a perturbed run.
fn with_perturbed(devices: Vec<DeviceRun>, losses: &[f64]) -> Comparison {
    let mut comparison = comparison(devices);
    comparison.perturbed = Some(run("flex (perturbed)", losses, None));
    comparison.judge();
    comparison
}

const LOSSES: [f64; 4] = [6.0, 5.0, 4.0, 3.0];

#[test]
fn rounding_is_not_a_divergence() {
    let rounded = LOSSES.map(|loss| loss * (1.0 + 1e-7));
    let comparison = comparison(vec![
        run("flex", &LOSSES, None),
        run("wgpu", &rounded, None),
    ]);
    assert!(comparison.verdict().is_ok());
    let text = comparison.to_string();
    assert!(
        text.contains(
            "wgpu agrees with flex: over 4 steps, the largest relative error of the loss is 1.0e-7"
        ),
        "{text}"
    );
    assert_eq!(comparison.devices[0].difference, None);
    assert_eq!(comparison.devices[1].tokens_per_second, Some(200.0));
}

#[test]
fn a_divergence_is_reported_with_its_step() {
    let comparison = comparison(vec![
        run("flex", &LOSSES, None),
        run("ndarray", &LOSSES, None),
        run("wgpu", &[6.0, 5.0, 4.1, 3.5], None),
    ]);
    let error = comparison.verdict().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        error.to_string(),
        "wgpu diverges from flex at step 3: loss 4.100000 vs 4.000000 (relative error 2.5e-2, allowed 1.0e-5)"
    );
}

#[test]
fn the_perturbed_run_raises_the_allowed_error() {
    // The error of the perturbed run is 1e-3 at step 3.
    let perturbed = [6.0, 5.0, 4.004, 3.0];
    let with = |losses: [f64; 4]| {
        with_perturbed(
            vec![run("flex", &LOSSES, None), run("wgpu", &losses, None)],
            &perturbed,
        )
    };
    let comparison = with([6.0, 5.0, 4.1, 3.05]);
    assert!(comparison.verdict().is_ok());
    let text = comparison.to_string();
    assert!(
        text.contains("rounding alone changes the loss of flex by up to 1.0e-3 (step 3)"),
        "{text}"
    );
    // Before step 3 its error is 0.
    let text = with([6.0, 5.001, 4.1, 3.05])
        .verdict()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("at step 2") && text.contains("allowed 1.0e-5"),
        "{text}"
    );
    let text = with([6.0, 5.0, 4.0, 4.0])
        .verdict()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("at step 4") && text.contains("allowed 1.0e-1"),
        "{text}"
    );
}

#[test]
fn a_wrong_gradient_shows_in_its_norm_before_it_shows_in_a_loss() {
    let mut wrong = run("wgpu", &LOSSES, None);
    wrong.steps[0].gradient_norm = 2.01;
    let text = comparison(vec![run("flex", &LOSSES, None), wrong])
        .verdict()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("at step 1: gradient norm 2.010000 vs 2.000000"),
        "{text}"
    );
}

#[test]
fn a_nan_loss_diverges() {
    let comparison = comparison(vec![
        run("flex", &LOSSES, None),
        run("wgpu", &[6.0, f64::NAN], None),
    ]);
    assert_eq!(
        comparison.devices[1]
            .divergence()
            .map(|divergence| divergence.step),
        Some(2)
    );
}

#[test]
fn a_failed_device_does_not_affect_the_others() {
    let comparison = comparison(vec![
        run("flex", &LOSSES, None),
        run(
            "cuda:7",
            &[],
            Some("device = cuda:7: 0 cuda adapter(s) found on this machine"),
        ),
        run("wgpu", &LOSSES[..2], Some("step 3: wgpu was lost: reset")),
        run("ndarray", &LOSSES, None),
    ]);
    let text = comparison.verdict().unwrap_err().to_string();
    assert_eq!(
        text,
        "device = cuda:7: 0 cuda adapter(s) found on this machine (0 of 4 steps completed); \
         step 3: wgpu was lost: reset (2 of 4 steps completed)"
    );
    let text = comparison.to_string();
    assert!(
        text.contains("ndarray agrees with flex: over 4 steps"),
        "{text}"
    );
    let page = comparison.page().render();
    for word in ["wgpu was lost", "ndarray agrees", "Training loss", "limit"] {
        assert!(page.contains(word), "{word:?} is missing from the page");
    }
}

#[test]
fn a_reference_without_steps_is_not_compared_with() {
    let comparison = comparison(vec![
        run("flex", &[], Some("no")),
        run("wgpu", &LOSSES, None),
    ]);
    assert_eq!(comparison.devices[1].difference, None);
    let text = comparison.to_string();
    assert!(
        text.contains("wgpu completed 4 steps, but flex has no step to compare with"),
        "{text}"
    );
    assert!(comparison.verdict().is_err());
}

#[test]
fn the_load_difference_is_reported_separately() {
    use firebox_model::moe::stats::LayerHealth;
    let with = |load: [f64; 2]| {
        let mut record = record(1, 6.0);
        record.layers = vec![LayerHealth {
            layer: 0,
            load: load.to_vec(),
            max_over_mean: load[0] * 2.0,
            dead_experts: 0,
            entropy: 0.6,
            balance: 1.0,
            z: 0.1,
        }];
        DeviceRun::new("any", vec![record], None)
    };
    let difference = Difference::between(&with([0.75, 0.25]).steps, &with([0.5, 0.5]).steps);
    assert_eq!(
        difference.map(|difference| difference.load),
        Some(vec![0.25])
    );
}

#[test]
fn tables_by_step_are_short_and_include_the_last_step() {
    let many: Vec<f64> = (0..500).map(|step| 6.0 - f64::from(step) * 1e-3).collect();
    let comparison = comparison(vec![run("flex", &many, None), run("ndarray", &many, None)]);
    let text = comparison.step_tables()[0].to_string();
    assert!((16..=20).contains(&text.lines().count()), "{text}");
    assert!(text.contains("5.501000"), "{text}");
}
