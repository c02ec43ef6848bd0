//! CloudEvents in structured mode.

use super::*;

fn send(served: &Served, event: &str) -> Response {
    let media = "application/cloudevents+json; charset=utf-8";
    served.post(&[("content-type", media)], event.as_bytes())
}

const BASE: &str = r#""specversion":"1.0","source":"/s","type":"t""#;

#[test]
fn the_grain_gets_the_data_and_the_attributes_come_back() {
    let served = Served::chain();
    for (id, data, sent) in [
        (
            "1",
            r#""data":{"b" : 1,"a":[2.50]}"#,
            r#"{"b" : 1,"a":[2.50]}"#,
        ),
        ("2", r#""data":"a \"text\"""#, r#""a \"text\"""#),
        (
            "3",
            r#""data":"plain","datacontenttype":"text/plain""#,
            "plain",
        ),
        (
            "4",
            r#""data":7,"datacontenttype":"application/x+json; a=b""#,
            "7",
        ),
        (
            "5",
            r#""data_base64":"aGVsbG8=","datacontenttype":"image/png""#,
            "hello",
        ),
        ("6", r#""subject":"Zoë 1%""#, ""),
    ] {
        let event = format!(r#"{{{BASE},"id":"{id}","number":5,"yes":true,"no":null,{data}}}"#);
        let answer = send(&served, &event);
        assert_eq!((answer.status, answer.text()), (200, format!("{sent}ab")));
        let header = |name: &str| answer.header(name).map(str::to_owned);
        assert_eq!(header("ce-number").as_deref(), Some("5"));
        assert_eq!(header("ce-yes").as_deref(), Some("true"));
        assert_eq!(header("ce-no"), None);
        let subject = (id == "6").then_some("Zo%C3%AB%201%25");
        assert_eq!(header("ce-subject").as_deref(), subject);
        assert_eq!(header("ce-type").as_deref(), Some("sandpipe.answer"));
    }
}

#[test]
fn an_event_is_the_same_one_in_either_mode() {
    let served = Served::chain();
    let first = send(&served, &format!(r#"{{{BASE},"id":"9","data":1}}"#));
    let event = [
        ("ce-specversion", "1.0"),
        ("ce-id", "9"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ];
    let again = served.post(&event, b"1");
    assert_eq!(first.header("ce-id"), again.header("ce-id"));
    assert_eq!(served.handled(), 2);
}

#[test]
fn what_is_no_event_is_refused_with_the_reason() {
    let served = Served::chain();
    let id = r#""id":"1""#;
    for (event, word) in [
        ("not json".to_owned(), "expected"),
        ("[]".into(), "invalid type"),
        (format!("{{{BASE}}}"), "id"),
        (
            format!(r#"{{{id},"source":"s","type":"t"}}"#),
            "specversion",
        ),
        (
            format!(r#"{{{BASE},{id},"data":1,"data_base64":""}}"#),
            "both",
        ),
        (
            format!(r#"{{{BASE},{id},"data_base64":"%"}}"#),
            "data_base64",
        ),
        (
            format!(r#"{{{BASE},{id},"data":1,"datacontenttype":"a/b"}}"#),
            "string",
        ),
        (format!(r#"{{{BASE},{id},"Upper":"x"}}"#), "name"),
        (format!(r#"{{{BASE},{id},"x":[1]}}"#), "attribute x"),
        (format!(r#"{{{BASE},{id},"x":"a\nb"}}"#), "printable"),
    ] {
        let answer = send(&served, &event);
        assert_eq!(answer.status, 400, "{event}");
        let detail = problem(&answer)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(word), "{word}: {detail}");
    }
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let answer = served.post(&batch, b"[]");
    assert_eq!((answer.status, served.handled()), (415, 0));
}
