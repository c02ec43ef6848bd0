use super::{Place, one};
use crate::config::Network;

#[test]
fn the_sandbox_section_gives_paths_that_are_there() {
    let place = Place::new();
    std::fs::create_dir(place.0.path().join("models")).unwrap();
    let section = "[sandbox]\nread = [\"models\", \"/usr\"]\nwrite = [\".\"]\ntmp_mb = 2\n";
    let sandbox = place.parse(&(one("") + section)).unwrap().sandbox;
    let own = place.0.path().canonicalize().unwrap();
    assert_eq!(sandbox.read, [own.join("models"), "/usr".into()]);
    assert_eq!(sandbox.write, [own]);
    assert_eq!((sandbox.tmp_bytes, sandbox.io_uring), (2 << 20, false));
    assert_eq!(sandbox.network, Network::Loopback);
    let asked = place.parse(&(one("") + "[sandbox]\nnetwork = \"host\"\n"));
    assert_eq!(asked.unwrap().sandbox.network, Network::Host);
}

#[test]
fn what_is_wrong_in_the_sandbox_section_is_said_with_its_line() {
    let lines = one("").lines().count();
    for (section, problem) in [
        ("readable = []", "unknown field `readable`"),
        ("read = [\"nowhere\"]", "nowhere: No such file"),
        ("write = [\"/\"]", "the whole file system"),
        ("tmp_mb = 0", "tmp_mb = 0"),
        ("network = \"veth\"", "network = \"veth\""),
    ] {
        let error = Place::new().parse(&(one("") + "[sandbox]\n" + section + "\n"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!(":{}: ", lines + 2)), "{error}");
        assert!(error.contains(problem), "{error}");
    }
}
