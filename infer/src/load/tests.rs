//! A load on a server of a tiny model, and on one that only looks like a server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use firebox_console::advice::Advise;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_serve::http;
use firebox_serve::route::Address;
use serde_json::Value;

use super::server_side::Scrape;
use super::workload::Workload;
use super::*;
use crate::engine::Engine;
use crate::generate::{Id, Prompt, Speculation};
use crate::serve::{ServeOptions, serve_while};
use crate::testing::{TinyCheckpoint, tiny_config};

fn options(loads: &[Load]) -> LoadOptions {
    LoadOptions {
        key: None,
        model: None,
        loads: loads.to_vec(),
        requests: Some(20),
        seconds: None,
        prompts: Prompts::Random {
            lengths: "4-8".parse().unwrap(),
            prefix: 0.5,
        },
        new_tokens: Lengths::all(12),
        temperature: 1.0,
        seed: 3,
        warmup: None,
        goodput: Some("ttft:100000,e2e:100000".parse().unwrap()),
    }
}

/// What is measured of a server of a tiny model.
fn of_server<T: Send>(key: Option<&str>, work: impl FnOnce(Address) -> T + Send) -> T {
    let tiny = TinyCheckpoint::new(&tiny_config(), 3);
    let engine = Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap();
    let options = ServeOptions {
        host: "127.0.0.1".to_owned(),
        port: 0,
        name: Some("tiny".to_owned()),
        sequences: 4,
        step_tokens: 64,
        cache_bytes: None,
        block_tokens: 4,
        queue: 64,
        http: http::Options {
            api_key: key.map(str::to_owned),
            ..http::Options::default()
        },
        image_folder: None,
        picture_bytes: 0,
        pictures: 1,
        parent: None,
    };
    let served = serve_while(
        &engine,
        tiny.path(),
        &Speculation::default(),
        &options,
        |address| Ok(work(address.to_string().parse().unwrap())),
    );
    served.unwrap()
}

fn run(address: &Address, options: &LoadOptions) -> Result<LoadReport, LoadError> {
    measure(address, options, || false)
}

#[test]
fn replies_and_counters_of_the_server_agree() {
    let loads = [
        Load::Concurrency(5),
        Load::Rate(500.0),
        Load::Rate(f64::INFINITY),
    ];
    let report = of_server(None, |address| run(&address, &options(&loads)).unwrap());
    assert_eq!(report.model, "tiny");
    assert_eq!(report.loads.len(), 3);
    for load in &report.loads {
        assert_eq!(
            (load.requests, load.answered),
            (20, 20),
            "{:?}",
            load.faults
        );
        assert_eq!(load.new_tokens, 20 * 12);
        let server = load.server.as_ref().unwrap();
        assert_eq!(server.generation_tokens as usize, load.new_tokens);
        assert_eq!(server.prompt_tokens as usize, load.prompt_tokens);
        assert!((20 * 4..=20 * 8).contains(&load.prompt_tokens));
        assert!((0.0..1.0).contains(&server.outside_of_steps), "{server:?}");
        assert_eq!(server.acceptance(), None);
        let experts = server.experts.unwrap();
        assert_eq!(experts.experts, 4);
        assert!((2.0..=4.0).contains(&experts.distinct), "{experts:?}");
        assert!(
            (2.0..=4.0).contains(&experts.distinct_if_even),
            "{experts:?}"
        );
        let first = load.time_to_first_token.unwrap();
        let (between, whole) = (load.between_tokens.unwrap(), load.end_to_end.unwrap());
        assert_eq!((first.count, whole.count), (20, 20));
        assert!(between.count > 0 && between.count <= 20 * 11);
        assert!(first.p50 > 0.0 && first.p50 < whole.p50 && whole.longest < load.seconds);
        assert!(load.good_requests_per_second.unwrap() > 0.0);
        for record in &load.records {
            let arrived: usize = record.arrivals.iter().map(|(_, tokens)| tokens).sum();
            assert_eq!(arrived, 12);
            assert!(record.arrivals.is_sorted_by(|a, b| a.0 <= b.0));
        }
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["loads"][0]["load"]["concurrency"], 5);
    assert_eq!(json["loads"][2]["load"]["rate"], "inf");
    let text = report.to_string();
    for words in [
        "5 at once",
        "500/s",
        "all at once",
        "good requests/s",
        "if chosen evenly",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let page = report.page().render();
    assert!(
        page.contains("Latency against load") && !page.contains("NaN"),
        "{page}"
    );
}

#[test]
fn a_load_ends_when_the_user_wants() {
    let report = of_server(None, |address| {
        let mut options = options(&[Load::Concurrency(2), Load::Concurrency(3)]);
        options.requests = None;
        options.seconds = Some(1e6);
        options.warmup = Some(0);
        let began = std::time::Instant::now();
        measure(&address, &options, || began.elapsed().as_secs_f64() > 0.5).unwrap()
    });
    assert_eq!(report.loads.len(), 1);
    assert!(report.answered() > 0);
}

#[test]
fn what_is_wrong_is_said() {
    let loads = [Load::Concurrency(1)];
    let faults = of_server(Some("secret"), |address| {
        let fault = |options: &LoadOptions| {
            let error = run(&address, options).unwrap_err();
            (error.to_string(), error.exit_code(), error.hint())
        };
        let keyed = LoadOptions {
            key: Some("secret".to_owned()),
            ..options(&loads)
        };
        [
            fault(&options(&loads)),
            fault(&LoadOptions {
                key: Some("wrong".to_owned()),
                ..options(&loads)
            }),
            fault(&LoadOptions {
                model: Some("other".to_owned()),
                ..keyed.clone()
            }),
            fault(&LoadOptions {
                new_tokens: Lengths::all(30),
                ..keyed.clone()
            }),
            fault(&LoadOptions {
                prompts: Prompts::Given(vec![Prompt {
                    id: Id::Number(1),
                    prompt: "long ".repeat(20),
                    max_tokens: None,
                    seed: None,
                }]),
                ..keyed
            }),
        ]
    });
    let words = [
        ("requires a key", 1, Some("--api-key-file")),
        ("does not accept this key", 1, Some("--api-key-file")),
        ("has no model other", 2, Some("it serves tiny")),
        ("exceed the context of 32 tokens", 2, Some("--new-tokens")),
        (
            "no request was answered: 400 context_length_exceeded: ",
            1,
            None,
        ),
    ];
    for ((text, code, hint), (words, expected, advice)) in faults.into_iter().zip(words) {
        assert!(text.contains(words), "{text}");
        assert_eq!(code, expected, "{text}");
        let advises = |advice: &str| hint.as_ref().is_some_and(|hint| hint.contains(advice));
        assert!(advice.is_none_or(advises), "{hint:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    drop(listener);
    let error = run(&address, &options(&loads)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no server answers at http://127.0.0.1:"),
        "{error}"
    );
}

/// Answers requests on a connection as a server does that counts nothing along: every third text with an error.
fn other_server(stream: TcpStream, asked: &mut usize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = head.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let path = head.split(' ').nth(1).unwrap();
        let (status, kind, reply) = match path {
            "/v1/models" => (
                200,
                "application/json",
                r#"{"data":[{"id":"x"}]}"#.to_owned(),
            ),
            "/v1/completions" => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                assert!(
                    body["prompt"].is_string() && body["ignore_eos"] == true,
                    "{body}"
                );
                *asked += 1;
                match *asked % 3 {
                    0 => (
                        429,
                        "application/json",
                        r#"{"error":{"message":"wait","code":"busy"}}"#.to_owned(),
                    ),
                    _ => {
                        let chunk = |text: &str| {
                            format!("data: {{\"choices\":[{{\"text\":\"{text}\"}}]}}\r\n\r\n")
                        };
                        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4}}\n\n";
                        let reply = [
                            ": hi\n\n",
                            &chunk("a"),
                            &chunk("b"),
                            &chunk("c"),
                            &chunk(""),
                            usage,
                            "data: [DONE]\n\n",
                        ];
                        (200, "text/event-stream", reply.concat())
                    }
                }
            }
            _ => (404, "text/html", "no".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            reply.len()
        );
        stream.write_all((head + &reply).as_bytes()).unwrap();
    }
}

#[test]
fn another_server_is_measured_without_counters() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    thread::spawn(move || {
        let mut asked = 0;
        for stream in listener.incoming() {
            other_server(stream.unwrap(), &mut asked);
        }
    });
    let mut options = options(&[Load::Concurrency(1)]);
    options.warmup = Some(1);
    options.requests = Some(12);
    let report = run(&address, &options).unwrap();
    let [load] = report.loads.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!((load.requests, load.answered), (12, 8));
    // What a reply says in the end counts.
    assert_eq!((load.new_tokens, load.prompt_tokens), (8 * 4, 8 * 7));
    assert_eq!(load.between_tokens.unwrap().count, 8 * 2);
    assert!(load.server.is_none());
    let faults = &load.faults["429 busy"];
    assert_eq!((faults.count, faults.first.as_str()), (4, "wait"));
    assert!(report.to_string().contains("429 busy"));
}

#[test]
fn a_request_depends_on_seed_and_number_alone() {
    let workload = |seed: u64, prefix: f64| Workload {
        model: "m".to_owned(),
        prompts: Prompts::Random {
            lengths: "10-20".parse().unwrap(),
            prefix,
        },
        new_tokens: "1-9".parse().unwrap(),
        temperature: 0.5,
        seed,
        vocabulary: Some((100..400).collect()),
    };
    let ids = |workload: &Workload, number: u64| {
        let body: Value = serde_json::from_str(&workload.body(number)).unwrap();
        let ids = body["prompt"].as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let one = workload(1, 0.0);
    assert_eq!(one.body(7), workload(1, 0.0).body(7));
    assert_ne!(one.body(7), one.body(8));
    assert_ne!(one.body(7), workload(2, 0.0).body(7));
    let all: Vec<Vec<u64>> = (0..200).map(|number| ids(&one, number)).collect();
    let lengths: std::collections::BTreeSet<usize> = all.iter().map(Vec::len).collect();
    assert_eq!((lengths.first(), lengths.last()), (Some(&10), Some(&20)));
    assert!(all.iter().flatten().all(|id| (100..400).contains(id)));
    let half = workload(1, 0.5);
    assert_eq!(ids(&half, 1)[..5], ids(&half, 2)[..5]);
    assert_ne!(ids(&half, 1), ids(&half, 2));
}

#[test]
fn lengths_and_limits_are_read() {
    assert_eq!("7".parse(), Ok(Lengths::all(7)));
    assert_eq!("7-9".parse(), Ok(Lengths { least: 7, most: 9 }));
    for wrong in ["0", "", "9-7", "1-", "-3", "1..2"] {
        assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
    }
    let limits: Goodput = "tpot:50,ttft:200".parse().unwrap();
    assert_eq!(limits.time_per_output_token, Some(0.05));
    assert_eq!(
        (limits.time_to_first_token, limits.end_to_end),
        (Some(0.2), None)
    );
    for wrong in ["", "ttft", "ttft:0", "ttft:x", "itl:3", "ttft:1,ttft:2"] {
        assert!(wrong.parse::<Goodput>().is_err(), "{wrong}");
    }
}

#[test]
fn times_of_a_record() {
    let record = Record {
        sent: 1.0,
        arrivals: vec![(1.5, 2), (1.75, 1), (2.5, 1)],
        ended: 3.0,
        prompt_tokens: 5,
        new_tokens: 4,
        fault: None,
    };
    assert_eq!(record.time_to_first_token(), Some(0.5));
    assert_eq!(record.between_tokens().collect::<Vec<_>>(), [0.25, 0.75]);
    assert_eq!(record.time_per_output_token(), Some(0.5));
    assert_eq!(record.end_to_end(), 2.0);
    let good = |text: &str| text.parse::<Goodput>().unwrap().accepts(&record);
    assert!(good("ttft:500,tpot:500,e2e:2000"));
    assert!(!good("ttft:499") && !good("tpot:499") && !good("e2e:1999"));
    let times = Quantiles::of([4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
    assert_eq!(
        (times.p50, times.mean, times.longest, times.count),
        (3.0, 3.0, 5.0, 5)
    );
    assert!((times.p95 - 4.8).abs() < 1e-12, "{times:?}");
    assert_eq!(Quantiles::of([]), None);
}

#[test]
fn growth_of_counters_over_replicas() {
    let text = |scale: u64| {
        let series = [
            ("firebox_step_seconds_count{replica=\"a\"}", 2),
            ("firebox_step_seconds_count{replica=\"b\"}", 2),
            ("firebox_step_tokens_sum", 12),
            ("firebox_step_experts_sum", 20),
            ("firebox_step_experts_count", 8),
            ("firebox_step_experts_even_total", 24),
            (
                "firebox_expert_tokens_total{replica=\"a\",expert=\"0\",layer=\"0\"}",
                30,
            ),
            (
                "firebox_expert_tokens_total{replica=\"b\",expert=\"0\",layer=\"0\"}",
                30,
            ),
            ("firebox_expert_tokens_total{expert=\"1\",layer=\"0\"}", 20),
            ("firebox_expert_tokens_total{expert=\"0\",layer=\"3\"}", 40),
            ("firebox_expert_tokens_total{expert=\"1\",layer=\"3\"}", 40),
            ("firebox_speculative_draft_tokens_total", 10),
            ("firebox_speculative_accepted_tokens_total", 4),
            (
                "firebox_speculative_accepted_tokens_by_position_total{position=\"0\"}",
                4,
            ),
        ];
        let lines = series.map(|(name, value)| format!("{name} {}\n", value * scale));
        format!("# TYPE x\n{}process_cpu 3\n", lines.concat())
    };
    let [before, after] = [1, 3].map(|scale| Scrape::read(&text(scale)).unwrap());
    let server = ServerSide::of(&before, &after, 2.0);
    assert_eq!((server.steps, server.tokens_per_step), (8, 3.0));
    assert_eq!(server.acceptance(), Some(0.4));
    let experts = server.experts.unwrap();
    assert_eq!((experts.distinct, experts.distinct_if_even), (2.5, 3.0));
    assert_eq!((experts.experts, experts.tokens_per_expert), (2, 8.0));
    assert_eq!(experts.busiest, 1.5);
    assert_eq!(Scrape::read("vllm:num_requests_running 3\n"), None);
}
