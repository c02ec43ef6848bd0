//! How idle workers that were ended are shown.

use super::fleet::Fleet;
use super::harness::until;

#[test]
fn unloaded_workers_are_shown_as_such_and_neither_as_failed_nor_as_restarted() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let section = "[keep_alive]\npolicy = \"fixed\"\nidle_s = 1";
    fleet.deploy(&fleet.write("x", &["a", "b"], section, ""));
    until("both are unloaded", || {
        let grains = agent.app("x").grains;
        grains.len() == 2 && grains.iter().all(|grain| grain.state == "unloaded")
    });
    let rows: serde_json::Value = serde_json::from_str(&fleet.ok(&["ps", "--json"])).unwrap();
    let row = &rows[0];
    assert_eq!(
        (&row["ready"], &row["grains_unloaded"]),
        (&true.into(), &2.into())
    );
    assert!(fleet.ok(&["ps"]).contains("idle and unloaded: 2 of 2"));
    let json = fleet.ok(&["top", "--once", "--json"]);
    let top: serde_json::Value = serde_json::from_str(&json).unwrap();
    for grain in top["apps"][0]["grains"].as_array().unwrap() {
        assert_eq!(
            (&grain["state"], &grain["restarts"], &grain["memory"]),
            (&"unloaded".into(), &0.into(), &0.into())
        );
    }
    // A new version's workers are idle before anybody calls them, too.
    fleet.deploy(&fleet.write("x", &["a"], section, ""));
    assert_eq!(fleet.ok(&["invoke", &fleet.app("x"), "--data", "y"]), "ya");
    agent.stop();
    fleet.assert_clean();
}
